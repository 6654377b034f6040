"""DAGM 2007 (Wieler and Hahn): ten synthetic textures, defects roughly outlined by ellipses."""

import pathlib
import re

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import (
    Listing,
    find_folder,
    list_images,
    masks_by_stem,
    name_in,
    pair,
)
from zsad_jax.data.dataset import Sample

LABEL = "_label"


class Dagm(Benchmark):
    """Ten generated textures; an image is anomalous where it has a label, a coarse ellipse."""

    name = "dagm"
    HOMEPAGE = (
        "https://www.kaggle.com/datasets/mhskjelvareid/"
        "dagm-2007-competition-dataset-optical-inspection"
    )
    LICENCE = "for research"
    ARCHIVES = (
        Archive("dagm-2007-competition-dataset-optical-inspection.zip", about="about 3 GB"),
    )
    TERMS = "Kaggle asks for an account"
    TREE = "Class1/Test/0001.PNG and Class1/Test/Label/0002_label.PNG"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {
            "Class1": (496, 79),
            "Class2": (509, 66),
            "Class3": (509, 66),
            "Class4": (493, 82),
            "Class5": (505, 70),
            "Class6": (492, 83),
            "Class7": (1000, 150),
            "Class8": (1000, 150),
            "Class9": (1000, 150),
            "Class10": (1000, 150),
        },
        "test": {
            "Class1": (504, 71),
            "Class2": (491, 84),
            "Class3": (491, 84),
            "Class4": (507, 68),
            "Class5": (495, 80),
            "Class6": (508, 67),
            "Class7": (1000, 150),
            "Class8": (1000, 150),
            "Class9": (1000, 150),
            "Class10": (1000, 150),
        },
    }

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds textures with their tests."""
        return any(find_folder(folder / name, "Test") for name in cls.categories())

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All textures, the normal images first."""
        listing = Listing()
        for category in cls.categories():
            for split in ("train", "test"):
                folder = find_folder(root / category, split)
                if folder is not None:
                    listing.add(split, _list_split(root, folder, category, listing))
        return listing


def _list_split(
    root: pathlib.Path, folder: pathlib.Path, category: str, listing: Listing
) -> list[Sample]:
    labels = find_folder(folder, "Label") or folder / "Label"
    masks = masks_by_stem(labels, LABEL)
    anomalous = set(masks) | _listed(labels)
    images = list_images(folder)
    normal = [
        Sample(
            image=str(path),
            has_mask=True,
            category=category,
            defect="good",
            file_name=name_in(root, path),
        )
        for path in images
        if path.stem not in anomalous
    ]
    defective = [path for path in images if path.stem in anomalous]
    return normal + pair(root, defective, masks, listing.issues, category=category)


def _listed(labels: pathlib.Path) -> set[str]:
    """The images that have a label according to the text beside the labels, where there is one."""
    return {
        stem
        for path in labels.glob("*.txt")
        for stem in re.findall(rf"(\w+){LABEL}\b", path.read_text(errors="replace"))
    }
