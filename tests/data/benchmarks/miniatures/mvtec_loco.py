"""MVTec LOCO miniature: several masks per image with gray values by kind of defect; a validation split."""

import pathlib
import runpy

HELPER = pathlib.Path(__file__).parents[1] / "mvtec_layout.py"
write_category = runpy.run_path(str(HELPER))["write_category"]


def make(root, tools):
    numbers = {
        "train/good": 2,
        "validation/good": 1,
        "test/good": 2,
        "test/logical_anomalies": 2,
        "test/structural_anomalies": 1,
    }
    top = "mvtec_loco_anomaly_detection"
    several = ("{}/000.png", "{}/001.png", "{}/002.png")
    samples = [
        *write_category(root, tools, top, "juice_bottle", numbers, masks=several, values=(0, 206)),
        *write_category(root, tools, top, "pushpins", numbers, masks=several[:1], values=(0, 255)),
    ]
    (root / top / "pushpins/defects_config.json").write_text("[]")
    return tools.Miniature(samples)
