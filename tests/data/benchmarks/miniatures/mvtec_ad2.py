"""MVTec AD 2 miniature: masks inside the public test folder, and unlabeled private folders that are ignored."""

import pathlib
import runpy

HELPER = pathlib.Path(__file__).parents[1] / "mvtec_layout.py"
write_category = runpy.run_path(str(HELPER))["write_category"]


def make(root, tools):
    numbers = {
        "train/good": 2,
        "validation/good": 1,
        "test_public/good": 2,
        "test_public/bad": 2,
    }
    options = {"ground_truth": "test_public/ground_truth"}
    top = "mvtec_ad_2"
    samples = [
        *write_category(root, tools, top, "can", numbers, stem="{:03}_regular", **options),
        *write_category(root, tools, top, "rice", numbers, stem="{:03}_shift_1", **options),
    ]
    for folder in ("test_private", "test_private_mixed"):
        tools.save(tools.draw(7), root / top / "can" / folder / "000_regular.png")
    return tools.Miniature(samples)
