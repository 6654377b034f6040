"""Br35H (Hamada, 2020): slices of brain MRI, with and without a tumor."""

import pathlib

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.brainmri import is_yes_and_no, list_yes_and_no
from zsad_jax.data.builders.layouts import Listing


class Br35h(Benchmark):
    """Slices of brain MRI with and without a tumor; no masks. Many of them are in BrainMRI, too."""

    name = "br35h"
    HOMEPAGE = "https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection"
    LICENCE = "not stated"
    ARCHIVES = (Archive("brain-tumor-detection.zip", about="88 MB"),)
    TREE = "yes/y1.jpg and no/no1.jpg"
    TERMS = "Kaggle asks for an account"
    COUNTS = {"test": {"br35h": (1500, 1500)}}  # noqa: RUF012 - a constant, as tensorflow-datasets has them

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds yes/ and no/ in the spelling of this set."""
        return is_yes_and_no(folder, r"y\d+")

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All labelled images; those of pred/ and Br35H-Mask-RCNN/ have no label and are left out."""
        return list_yes_and_no(root, cls.name)
