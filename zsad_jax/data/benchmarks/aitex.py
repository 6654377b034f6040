"""AITEX (Silvestre-Blanes et al., AUTEX 2019): woven fabrics, in patches as InCTRL and FAPrompt test them."""

import dataclasses
import pathlib

from absl import logging

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import (
    Box,
    Listing,
    cut,
    find_folder,
    list_folders,
    list_pairs,
    list_unmasked,
    split_normals,
)
from zsad_jax.data.dataset import Sample

PATCH = 256  # pixels
DEFECTS = {
    "002": "Broken_end",
    "006": "Broken_yarn",
    "010": "Broken_pick",
    "016": "Weft_curling",
    "019": "Fuzzyball",
    "022": "Cut_selvage",
    "023": "Crease",
    "025": "Warp_ball",
    "027": "Knots",
    "029": "Contamination",
    "030": "Nep",
    "036": "Weft_crack",
}


class Aitex(Benchmark):
    """Strips cut into square patches; tested on all with a defect and a quarter of those of clean strips."""

    name = "aitex"
    HOMEPAGE = "https://www.aitex.es/afid"
    LICENCE = "free for research"
    ARCHIVES = (
        Archive(
            "Defect_images.7z",
            about="106 strips",
            sha256="2153ef691020ce0c6a0acaee2d1de76c75f0784a04b931706de7d5e1df7a1b63",
        ),
        Archive(
            "NODefect_images.7z",
            about="141 strips",
            sha256="4409ca615f069e0b92eaf1bd2058c8a37d9cb983f3aad205e7d69f30816f5664",
        ),
        Archive(
            "Mask_images.7z",
            about="107 masks",
            sha256="2d64486dbb5a2e1aa462b43c0f19e614af5aea6607c11d1a928e4ad9feb558d5",
        ),
    )
    TERMS = "a form must be filled in there"
    UNPACK = "7z x FILE for each FILE"
    TREE = "Defect_images/0001_002_00.png, NODefect_images and Mask_images/0001_002_00_mask.png"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {"aitex": (1692, 0)},
        "test": {"aitex": (564, 183)},
    }

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the folders of strips, with and without defects."""
        return all(find_folder(folder, name) for name in ("Defect_images", "NODefect_images"))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """The patches of all strips; the masks are read, as only their pixels tell which are defective."""
        listing = Listing()
        clean = find_folder(root, "NODefect_images") or root
        normal = [
            patch
            for folder in (clean, *list_folders(clean))
            for strip in list_unmasked(root, folder, label=0, category=cls.name)
            for patch in cut(strip, patches, listing)
        ]
        defective = [
            patch
            for strip in _list_defective(cls.name, root, listing)
            for patch in cut(strip, patches, listing)
        ]
        anomalous = [patch for patch in defective if patch.label]
        logging.info(
            "%s: %d patches of strips with a defect show none of it and are left out.",
            cls.TITLE,
            len(defective) - len(anomalous),
        )
        tested, left = split_normals(normal)
        listing.add("train", left)
        listing.add("test", tested + anomalous)
        return listing


def _list_defective(category: str, root: pathlib.Path, listing: Listing) -> list[Sample]:
    """The strips with a defect, and its kind."""
    images = find_folder(root, "Defect_images") or root
    masks = find_folder(root, "Mask_images") or root / "Mask_images"
    return [
        dataclasses.replace(strip, defect=_defect(pathlib.Path(strip.file_name).stem))
        for strip in list_pairs(root, images, masks, listing.issues, category=category)
    ]


def _defect(stem: str) -> str:
    """The kind of defect, whose code is the second number of a file's name."""
    code = stem.partition("_")[2].partition("_")[0]
    return DEFECTS.get(code, code)


def patches(size: tuple[int, int]) -> list[Box]:
    """A strip of (width, height) pixels in patches, from left to right; the last may be narrower."""
    width, height = size
    return [(left, 0, min(left + PATCH, width), height) for left in range(0, width, PATCH)]
