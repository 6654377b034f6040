"""LAG (Li et al., CVPR 2019): fundus photographs, some of them with glaucoma."""

import pathlib

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing, split_normals
from zsad_jax.data.builders.two_folders import find_images, list_two_folders

NORMAL, GLAUCOMA = "non_glaucoma", "suspicious_glaucoma"


class Lag(Benchmark):
    """Fundus photographs; no masks, for the maps that come with them show where physicians looked.

    A quarter of the normal images is in the test split, the others are in the train split.
    """

    name = "lag"
    HOMEPAGE = "https://github.com/smilell/AG-CNN"
    LICENCE = "academic use, not to be passed on"
    ARCHIVES = (Archive("LAG_database_part_1.rar", about="4,854 images"),)
    TREE = "suspicious_glaucoma/image/0001.jpg and non_glaucoma/image/0001.jpg"
    TERMS = "its authors give the password on request, for academic use"
    UNPACK = "unrar x -pPASSWORD LAG_database_part_1.rar"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {"lag": (2357, 0)},
        "test": {"lag": (786, 1711)},
    }

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds both kinds of images."""
        return bool(find_images(folder, NORMAL) and find_images(folder, GLAUCOMA))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images; the folder is the label, and the normal ones are drawn into train and test."""
        listing = Listing()
        folders = find_images(root, NORMAL), find_images(root, GLAUCOMA)
        normal, anomalous = list_two_folders(root, *folders, category=cls.name, defect="glaucoma")
        test, train = split_normals(normal)
        listing.add("train", train)
        listing.add("test", test + anomalous)
        return listing
