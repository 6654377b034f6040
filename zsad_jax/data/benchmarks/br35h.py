"""Br35H (Hamada, 2020): slices of brain MRI, with and without a tumor."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.two_folders import TwoFolders


class Br35h(TwoFolders):
    """Slices of brain MRI with and without a tumor; no masks. Many of them are in BrainMRI, too."""

    name = "br35h"
    HOMEPAGE = "https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection"
    LICENCE = "not stated"
    ARCHIVES = (Archive("brain-tumor-detection.zip", about="88 MB"),)
    TREE = "yes/y1.jpg and no/no1.jpg"
    NORMAL, ANOMALOUS = ("no",), ("yes",)
    STEM = r"y\d+"  # BrainMRI has Y1.jpg
    DEFECT = "tumor"
    LEFT_OUT = ("pred", "Br35H-Mask-RCNN")  # without labels; further copies
    TERMS = "Kaggle asks for an account"
    COUNTS = {"test": {"br35h": (1500, 1500)}}  # noqa: RUF012 - a constant, as tensorflow-datasets has them
