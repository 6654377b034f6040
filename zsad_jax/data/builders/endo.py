"""EndoTect 2020 (Hicks et al., ICPR 2020 workshops): the test images of its segmentation task, polyps."""

import pathlib

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing
from zsad_jax.data.builders.paired_folders import (
    IMAGES_AND_MASKS,
    has_pair,
    is_called,
    list_anomalous,
)

FOLDER = "EndoTect_2020_Segmentation_Test_Dataset"


class Endo(Benchmark):
    """Colonoscopy, a polyp in every image."""

    name = "endo"
    HOMEPAGE = "https://drive.google.com/file/d/1LNpLkv5ZlEUzr_RPN5rdOHaqk0SkZa3m/view"
    LICENCE = "no licence stated"
    ARCHIVES = (Archive(f"{FOLDER}.zip", about="200 images with masks"),)
    TERMS = "Google Drive hands it to browsers only"
    TREE = f"{FOLDER}/images and {FOLDER}/masks"
    COUNTS = {"test": {"endo": (0, 200)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder has the set's name and holds images and masks."""
        return is_called(folder, r"endo(tect.*)?") and cls.is_given(folder)

    @classmethod
    def is_given(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds images and masks."""
        return has_pair(folder, IMAGES_AND_MASKS)

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images with their masks, which have the same names."""
        return list_anomalous(root, {"test": IMAGES_AND_MASKS}, category=cls.name, defect="polyp")
