"""EndoTect 2020 (Hicks et al., ICPR 2020 workshops): the test images of its segmentation task, polyps."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.paired_folders import PairedFolders

FOLDER = "EndoTect_2020_Segmentation_Test_Dataset"


class Endo(PairedFolders):
    """Colonoscopy, a polyp in every image."""

    name = "endo"
    HOMEPAGE = "https://drive.google.com/file/d/1LNpLkv5ZlEUzr_RPN5rdOHaqk0SkZa3m/view"
    LICENCE = "no licence stated"
    ARCHIVES = (Archive(f"{FOLDER}.zip", about="200 images with masks"),)
    TERMS = "Google Drive hands it to browsers only"
    TREE = f"{FOLDER}/images and {FOLDER}/masks"
    CALLED = r"endo(tect.*)?"
    DEFECT = "polyp"
    COUNTS = {"test": {"endo": (0, 200)}}  # noqa: RUF012 - a constant
