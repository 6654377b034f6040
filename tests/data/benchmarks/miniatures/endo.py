"""Endo miniature: JPEG images and masks, packed on macOS."""

import pathlib
import runpy

HELPER = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "paired_folders.py"))


def make(root, tools):
    name = "EndoTect_2020_Segmentation_Test_Dataset"
    samples = HELPER["write_pairs"](
        root / name,
        tools,
        ["a1", "b2", "c3"],
        image="images/{}.jpg",
        mask="masks/{}.jpg",
        category="endo",
        defect="polyp",
    )
    for kind in ("images", "masks"):
        other = root / "__MACOSX" / name / kind / "._a1.jpg"
        other.parent.mkdir(parents=True)
        other.write_text("x")
    return tools.Miniature(samples, notes=HELPER["note_levels"](samples))
