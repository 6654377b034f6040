"""SD-saliency-900 (Song et al., 2020): three kinds of defect on strips of hot-rolled steel."""

import dataclasses
import pathlib

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, find_folder, list_folders, list_pairs

KINDS = {"In": "inclusion", "Pa": "patches", "Sc": "scratches"}


class SdSaliency900(Benchmark):
    """Steel with inclusions, patches or scratches, a mask for each image; no normal images."""

    name = "sd_saliency_900"
    HOMEPAGE = "https://github.com/SongGuorong/MCITF"
    LICENCE = "no licence stated"
    ARCHIVES = (
        Archive(
            "MCITF-master.zip", about="the whole repository", url=f"{HOMEPAGE}/archive/HEAD.zip"
        ),
    )
    TREE = "Source Images/In_1.bmp and Ground truth/In_1.png"
    COUNTS = {"test": {"sd_saliency_900": (0, 900)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds images and masks as published, or as TPS repacks them."""
        return bool(_folders(folder))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images with their masks; the name begins with the kind of defect."""
        listing = Listing()
        for images, masks in _folders(root):
            for sample in list_pairs(root, images, masks, listing.issues, category=cls.name):
                kind = pathlib.Path(sample.file_name).stem.split("_")[0]
                listing.add("test", [dataclasses.replace(sample, defect=KINDS.get(kind, ""))])
        return listing


def _folders(root: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The folders of images, each with that of its masks."""
    images, masks = find_folder(root, "Source Images"), find_folder(root, "Ground truth")
    if images and masks:
        return [(images, masks)]
    repacked = root / "iron"
    return [
        (kind, repacked / "ground_truth" / kind.name) for kind in list_folders(repacked / "test")
    ]
