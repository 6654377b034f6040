"""Kvasir-SEG miniature: color JPEG masks, and bounding boxes that are not read."""

import pathlib
import runpy

HELPER = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "paired_folders.py"))


def make(root, tools):
    folder = root / "Kvasir-SEG"
    samples = HELPER["write_pairs"](
        folder,
        tools,
        ["cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4", "cju0qx73cjw570799j4n5cjze"],
        image="images/{}.jpg",
        mask="masks/{}.jpg",
        mask_mode="RGB",
        category="kvasir",
        defect="polyp",
    )
    (folder / "kavsir_bboxes.json").write_text("{}")
    (folder / "images/.DS_Store").write_text("x")
    return tools.Miniature(samples, notes=HELPER["note_levels"](samples))
