"""CVC-ClinicDB miniature: numbered TIFF frames and masks with the same names."""

import pathlib
import runpy

HELPER = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "paired_folders.py"))


def make(root, tools):
    samples = HELPER["write_pairs"](
        root / "CVC-ClinicDB",
        tools,
        ["1", "2", "10"],
        image="Original/{}.tif",
        mask="Ground Truth/{}.tif",
        category="cvc_clinicdb",
        defect="polyp",
    )
    (root / "CVC-ClinicDB/README.txt").write_text("terms")
    return tools.Miniature(samples)
