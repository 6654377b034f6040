"""MPDD miniature: two categories in MVTec's layout, each with its kinds of defects."""

import pathlib
import runpy

HELPER = pathlib.Path(__file__).parents[1] / "mvtec_layout.py"
write_category = runpy.run_path(str(HELPER))["write_category"]


def make(root, tools):
    common = {"train/good": 2, "test/good": 2}
    black = {**common, "test/hole": 2, "test/scratches": 1}
    return tools.Miniature(
        [
            *write_category(root, tools, "MPDD", "bracket_black", black),
            *write_category(root, tools, "MPDD", "tubes", {**common, "test/anomalous": 2}),
        ]
    )
