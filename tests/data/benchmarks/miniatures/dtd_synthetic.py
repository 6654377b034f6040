"""DTD-Synthetic miniature: two textures in MVTec's layout; the only kind of defect is `bad`."""

import pathlib
import runpy

HELPER = pathlib.Path(__file__).parents[1] / "mvtec_layout.py"
write_category = runpy.run_path(str(HELPER))["write_category"]


def make(root, tools):
    numbers = {"train/good": 2, "test/good": 1, "test/bad": 2}
    return tools.Miniature(
        [
            *write_category(root, tools, "DTD-Synthetic", "Blotchy_099", numbers),
            *write_category(root, tools, "DTD-Synthetic", "Woven_001", numbers),
        ]
    )
