"""BrainMRI (Chakrabarty, 2019): slices of brain MRI, with and without a tumor."""

import pathlib
import re

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing, list_images
from zsad_jax.data.builders.two_folders import find_images, list_two_folders


class BrainMri(Benchmark):
    """Slices of brain MRI with and without a tumor; no masks. Most of them are in Br35H, too."""

    name = "brainmri"
    HOMEPAGE = "https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection"
    LICENCE = "not stated"
    # Everything is in it twice; the copy in brain_tumor_dataset/ lies below the root and is not looked at.
    ARCHIVES = (Archive("brain-mri-images-for-brain-tumor-detection.zip", about="16 MB"),)
    TREE = "yes/Y1.jpg and no/1 no.jpeg"
    TERMS = "Kaggle asks for an account"
    COUNTS = {"test": {"brainmri": (98, 155)}}  # noqa: RUF012 - a constant, as tensorflow-datasets has them

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds yes/ and no/ in the spelling of this set."""
        return is_yes_and_no(folder, r"Y\d+")

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images; the folder is the label."""
        return list_yes_and_no(root, cls.name)


def is_yes_and_no(folder: pathlib.Path, stem: str) -> bool:
    """Whether a folder holds the images of one of the two sets that consist of yes/ and no/.

    Args:
      folder: any folder.
      stem: what most names in yes/ look like, for nothing else tells the sets apart: BrainMRI has `Y1.jpg`,
        Br35H `y1.jpg`.
    """
    yes, no = find_images(folder, "yes"), find_images(folder, "no")
    if yes is None or no is None:
        return False
    matches = [bool(re.fullmatch(stem, path.stem)) for path in list_images(yes)]
    return sum(matches) > len(matches) / 2


def list_yes_and_no(root: pathlib.Path, category: str) -> Listing:
    """The images of no/, which are normal, and of yes/, which show a tumor."""
    listing = Listing()
    folders = find_images(root, "no"), find_images(root, "yes")
    for samples in list_two_folders(root, *folders, category=category, defect="tumor"):
        listing.add("test", samples)
    return listing
