"""MVTec AD 2 (Heckler-Kram et al., 2025): glass, bulk goods, dark fields and changing light."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout

PUBLIC = "test_public"


class MvtecAd2(MvtecLayout):
    """Eight industrial scenes under several lights.

    The test split is `test_public`. `test_private` and `test_private_mixed` are left out: their labels are
    known to the authors' evaluation server alone.
    """

    name = "mvtec_ad2"
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad-2"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = (
        Archive(
            "mvtec_ad_2.tar.gz",
            about="33 GB",
            sha256="c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
        ),
    )
    TREE = f"can/{PUBLIC}/bad/000_regular.png and can/{PUBLIC}/ground_truth/bad"
    SPLITS = {"train": "train", "validation": "validation", "test": PUBLIC}  # noqa: RUF012 - a constant
    GROUND_TRUTH = f"{PUBLIC}/ground_truth"
    MARKS = (PUBLIC,)
    LEFT_OUT = ("*/test_private", "*/test_private_mixed")
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {
            "can": (412, 0),
            "fabric": (387, 0),
            "fruit_jelly": (263, 0),
            "rice": (313, 0),
            "sheet_metal": (137, 0),
            "vial": (291, 0),
            "wallplugs": (293, 0),
            "walnuts": (432, 0),
        },
        "validation": {
            "can": (46, 0),
            "fabric": (43, 0),
            "fruit_jelly": (37, 0),
            "rice": (35, 0),
            "sheet_metal": (19, 0),
            "vial": (41, 0),
            "wallplugs": (33, 0),
            "walnuts": (48, 0),
        },
        "test": {
            "can": (72, 90),
            "fabric": (66, 90),
            "fruit_jelly": (20, 60),
            "rice": (42, 90),
            "sheet_metal": (24, 90),
            "vial": (35, 105),
            "wallplugs": (60, 90),
            "walnuts": (60, 90),
        },
    }
