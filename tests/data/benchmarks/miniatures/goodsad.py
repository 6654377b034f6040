"""GoodsAD miniature: two categories of JPEG images with six digits; masks have the image's name."""

import pathlib
import runpy

HELPER = pathlib.Path(__file__).parents[1] / "mvtec_layout.py"
write_category = runpy.run_path(str(HELPER))["write_category"]


def make(root, tools):
    numbers = {"train/good": 2, "test/good": 2, "test/opened": 1, "test/surface_damage": 2}
    options = {"stem": "001{:03}", "masks": ("{}.png",)}
    return tools.Miniature(
        [
            *write_category(root, tools, "", "drink_can", numbers, suffix=".jpg", **options),
            *write_category(root, tools, "", "food_box", numbers, suffix=".JPG", **options),
        ]
    )
