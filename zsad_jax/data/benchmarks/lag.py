"""LAG (Li et al., CVPR 2019): fundus photographs, some of them with glaucoma."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.two_folders import TwoFolders


class Lag(TwoFolders):
    """Fundus photographs; no masks, for the maps that come with them show where physicians looked.

    A quarter of the normal images is in the test split, the others are in the train split.
    """

    name = "lag"
    HOMEPAGE = "https://github.com/smilell/AG-CNN"
    LICENCE = "academic use, not to be passed on"
    ARCHIVES = (Archive("LAG_database_part_1.rar", about="4,854 images"),)
    TREE = "suspicious_glaucoma/image/0001.jpg and non_glaucoma/image/0001.jpg"
    NORMAL, ANOMALOUS = ("non_glaucoma",), ("suspicious_glaucoma",)
    DEFECT = "glaucoma"
    DRAWN = True
    LEFT_OUT = ("*/attention*",)
    TERMS = "its authors give the password on request, for academic use"
    UNPACK = "unrar x -pPASSWORD LAG_database_part_1.rar"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {"lag": (2357, 0)},
        "test": {"lag": (786, 1711)},
    }
