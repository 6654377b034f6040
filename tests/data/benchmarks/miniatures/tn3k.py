"""TN3K miniature: training images with the same names, JPEG masks, and a second dataset of healthy thyroids."""

import pathlib
import runpy

HELPER = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "paired_folders.py"))


def make(root, tools):
    folder = root / "Thyroid Dataset"
    samples = []
    for split, below, stems in (
        ("train", "trainval", ["0000", "0001", "0002", "0003"]),
        ("test", "test", ["0000", "0001", "0002"]),
    ):
        samples += HELPER["write_pairs"](
            folder / "tn3k",
            tools,
            stems,
            image=below + "-image/{}.jpg",
            mask=below + "-mask/{}.jpg",
            split=split,
            mode="L",
            category="tn3k",
            defect="nodule",
        )
    for name in ("thyroid-image/0000.jpg", "thyroid-mask/0000.jpg"):
        tools.save(tools.draw(0), folder / "tg3k" / name)
    (folder / "tn3k/tn3k-trainval-fold0.json").write_text("{}")
    return tools.Miniature(samples, notes=HELPER["note_levels"](samples))
