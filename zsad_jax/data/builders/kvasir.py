"""Kvasir-SEG (Jha et al., MMM 2020): polyps in the colon."""

import pathlib

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing
from zsad_jax.data.builders.paired_folders import (
    IMAGES_AND_MASKS,
    has_pair,
    is_called,
    list_anomalous,
)


class Kvasir(Benchmark):
    """Colonoscopy, a polyp in every image. Masks are JPEGs: around a polyp they have a rim of noise."""

    name = "kvasir"
    HOMEPAGE = "https://datasets.simula.no/kvasir-seg"
    LICENCE = "research and education only"
    ARCHIVES = (
        Archive(
            "kvasir-seg.zip",
            about="46 MB",
            sha256="03b30e21d584e04facf49397a2576738fd626815771afbbf788f74a7153478f7",
            url="https://datasets.simula.no/downloads/kvasir-seg.zip",
            size=46_227_172,
        ),
    )
    TREE = "Kvasir-SEG/images/cju0qkwl35piu0993l0dewei2.jpg and Kvasir-SEG/masks"
    COUNTS = {"test": {"kvasir": (0, 1000)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder has the set's name and holds images and masks."""
        return is_called(folder, r"kvasir([-_ ]?seg.*)?") and cls.is_given(folder)

    @classmethod
    def is_given(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds images and masks."""
        return has_pair(folder, IMAGES_AND_MASKS)

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images with their masks, which have the same names."""
        return list_anomalous(root, {"test": IMAGES_AND_MASKS}, category=cls.name, defect="polyp")
