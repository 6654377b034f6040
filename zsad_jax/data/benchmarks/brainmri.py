"""BrainMRI (Chakrabarty, 2019): slices of brain MRI, with and without a tumor."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.two_folders import TwoFolders


class BrainMri(TwoFolders):
    """Slices of brain MRI with and without a tumor; no masks. Most of them are in Br35H, too."""

    name = "brainmri"
    HOMEPAGE = "https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection"
    LICENCE = "not stated"
    ARCHIVES = (Archive("brain-mri-images-for-brain-tumor-detection.zip", about="16 MB"),)
    TREE = "yes/Y1.jpg and no/1 no.jpeg"
    NORMAL, ANOMALOUS = ("no",), ("yes",)
    STEM = r"Y\d+"  # Br35H has y1.jpg
    DEFECT = "tumor"
    LEFT_OUT = ("brain_tumor_dataset",)  # the archive holds everything twice
    TERMS = "Kaggle asks for an account"
    COUNTS = {"test": {"brainmri": (98, 155)}}  # noqa: RUF012 - a constant, as tensorflow-datasets has them
