"""MPDD (Jezek et al., ICUMT 2021): painted and bare metal parts, in MVTec's layout."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout


class Mpdd(MvtecLayout):
    """Metal parts, several in one image and in any position; masks for every defect."""

    name = "mpdd"
    HOMEPAGE = "https://github.com/stepanje/MPDD"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = (Archive("MPDD.zip", about="1.8 GB"),)
    TERMS = "there is no direct link"
    TREE = "bracket_black/test/hole/000.png"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {
            "bracket_black": (289, 0),
            "bracket_brown": (185, 0),
            "bracket_white": (110, 0),
            "connector": (128, 0),
            "metal_plate": (54, 0),
            "tubes": (122, 0),
        },
        "test": {
            "bracket_black": (32, 47),
            "bracket_brown": (26, 51),
            "bracket_white": (30, 30),
            "connector": (30, 14),
            "metal_plate": (26, 71),
            "tubes": (32, 69),
        },
    }
