"""GoodsAD (Zhang et al., RA-L 2024): goods of a supermarket at 3000x3000, in MVTec's layout."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout


class GoodsAd(MvtecLayout):
    """Packed goods, many kinds in one category, in any position; most defects are small."""

    name = "goodsad"
    HOMEPAGE = "https://github.com/jianzhang96/GoodsAD"
    LICENCE = "no licence stated"
    ARCHIVES = (
        Archive("cigarette_box.zip", about="1.4 GB"),
        Archive("drink_bottle.zip", about="2.9 GB"),
        Archive("drink_can.zip", about="1.1 GB"),
        Archive("food_bottle.zip", about="3.0 GB"),
        Archive("food_box.zip", about="1.7 GB"),
        Archive("food_package.zip", about="2.2 GB"),
    )
    TERMS = "there is no direct link"
    TREE = "food_box/test/good and food_box/ground_truth"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {
            "cigarette_box": (183, 0),
            "drink_bottle": (733, 0),
            "drink_can": (234, 0),
            "food_bottle": (1014, 0),
            "food_box": (432, 0),
            "food_package": (540, 0),
        },
        "test": {
            "cigarette_box": (183, 246),
            "drink_bottle": (356, 425),
            "drink_can": (147, 147),
            "food_bottle": (243, 361),
            "food_box": (146, 251),
            "food_package": (253, 230),
        },
    }
