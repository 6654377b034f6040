"""ISIC miniature: the images and masks of two archives in one folder."""

import pathlib
import runpy

HELPER = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "paired_folders.py"))


def make(root, tools):
    samples = HELPER["write_pairs"](
        root,
        tools,
        ["ISIC_0000003", "ISIC_0000012", "ISIC_0011404"],
        image="ISBI2016_ISIC_Part1_Test_Data/{}.jpg",
        mask="ISBI2016_ISIC_Part1_Test_GroundTruth/{}_Segmentation.png",
        category="isic",
        defect="lesion",
    )
    return tools.Miniature(samples)
