"""VisA miniature: two categories, masks with indices of several kinds of defect, upper-case suffixes."""

import csv


def make(root, tools):
    samples, rows = [], []
    for category in ("candle", "pipe_fryum"):
        for i in range(7):
            label = int(i >= 4)
            kind = f"Anomaly/{i - 4:03}" if label else f"Normal/{i:04}"
            name, mask_name = f"{category}/Data/Images/{kind}.JPG", ""
            image, mask = tools.save(tools.draw(i), root / name), None
            if label:
                mask_name = f"{category}/Data/Masks/{kind}.png"
                drawn = tools.draw_mask(i, values=(0, 1, 2, 5))
                mask = tools.save_mask(drawn, root / mask_name)
            split = "train" if i < 2 else "test"
            rows.append([category, split, ("normal", "anomaly")[label], name, mask_name])
            defect = "" if label else "good"
            samples.append(tools.Expected(split, name, category, label, image, mask, defect))
    (root / "split_csv").mkdir()
    with open(root / "split_csv/1cls.csv", "w", newline="") as file:
        csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])
    levels = [(sample.file_name, "mask_levels") for sample in samples if sample.label]
    return tools.Miniature(samples, notes=tuple(levels))
