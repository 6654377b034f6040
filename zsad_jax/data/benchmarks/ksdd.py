"""KolektorSDD (Tabernik et al., JIM 2020): surfaces of electrical commutators, in three parts each."""

import dataclasses
import itertools
import pathlib
import re

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import (
    Box,
    Listing,
    cut,
    list_folders,
    list_images,
    pair,
    split_normals,
)

LABEL = "_label"


class Ksdd(Benchmark):
    """Each image cut into three along its height; tested on all defective parts and a quarter of the others."""

    name = "ksdd"
    HOMEPAGE = "https://www.vicos.si/resources/kolektorsdd"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = (
        Archive(
            "KolektorSDD.zip",
            about="about 100 MB",
            sha256="65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
            url="https://data.vicos.si/datasets/KSDD/KolektorSDD.zip",
        ),
    )
    TREE = "kos01/Part0.jpg and kos01/Part0_label.bmp"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {"ksdd": (857, 0)},
        "test": {"ksdd": (286, 54)},
    }

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds folders of parts with their labels."""
        return any(folder.glob(f"kos*/Part*{LABEL}.*"))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All parts of all images; the labels are read, as only their pixels tell which are defective."""
        listing = Listing()
        parts = []
        for folder in list_folders(root):
            if not re.fullmatch(r"kos\d+", folder.name):
                continue
            files = list_images(folder)
            labels = {
                path.stem.removesuffix(LABEL): [path] for path in files if path.stem.endswith(LABEL)
            }
            images = [path for path in files if not path.stem.endswith(LABEL)]
            for image in pair(root, images, labels, listing.issues, category=cls.name):
                # Every image has a label, and an empty one is no issue.
                parts += cut(dataclasses.replace(image, label=0), thirds, listing)
        tested, left = split_normals([part for part in parts if not part.label])
        listing.add("train", left)
        listing.add("test", tested + [part for part in parts if part.label])
        return listing


def thirds(size: tuple[int, int]) -> list[Box]:
    """An image of (width, height) pixels in three, from top to bottom."""
    width, height = size
    cuts = (0, height // 3, 2 * height // 3, height)
    return [(0, upper, width, lower) for upper, lower in itertools.pairwise(cuts)]
