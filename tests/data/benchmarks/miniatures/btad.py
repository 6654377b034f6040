"""BTAD miniature: BMP images with PNG masks, a BMP-only category, soft gray masks; normal is `ok`."""

import pathlib
import runpy

HELPER = pathlib.Path(__file__).parents[1] / "mvtec_layout.py"
write_category = runpy.run_path(str(HELPER))["write_category"]

NUMBERS = {"train/ok": 2, "test/ok": 2, "test/ko": 2}


def make(root, tools):
    def write(category, **options):
        top = "BTech_Dataset_transformed"
        options = {"stem": "{:04}", "normal": "ok", **options}
        return write_category(root, tools, top, category, NUMBERS, **options)

    samples = [
        *write("01", suffix=".bmp", masks=("{}.png",)),
        *write("02", masks=("{}.png",), values=(0, 60, 120, 255)),
        *write("03", suffix=".bmp", masks=("{}.bmp",), mode="L"),
    ]
    soft = [s.file_name for s in samples if s.category == "02" and s.label]
    return tools.Miniature(samples, notes=tuple((name, "mask_levels") for name in soft))
