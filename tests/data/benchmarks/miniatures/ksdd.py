"""KolektorSDD miniature: three commutators with gray and palette labels; one label has two indices."""

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 10, 8  # the parts have 3, 3 and 4 rows
# file: rows of its label, and their values
DEFECTS = {
    "kos01/Part0": {},
    "kos01/Part5": {4: 1},
    "kos20/Part4": {2: 1, 3: 2, 9: 2},
    "kos20/Part0": {},
}


def make(root, tools):
    samples = []
    for number, (name, rows) in enumerate(DEFECTS.items()):
        drawn = tools.draw(number, mode="L", size=(WIDTH, HEIGHT))
        image = tools.save(drawn, root / "KolektorSDD" / f"{name}.jpg")
        label = np.zeros((HEIGHT, WIDTH), np.uint8)
        for row, value in rows.items():
            label[row, 2:5] = value
        written = Image.fromarray(label)
        if rows:
            written.putpalette(
                [0, 0, 0, *([255] * 3 if max(rows.values()) == 1 else [85] * 3), *[255] * 3]
            )
        path = root / "KolektorSDD" / f"{name}_label.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        written.save(path)
        for part, cut in enumerate((slice(0, 3), slice(3, 6), slice(6, 10))):
            mask = label[cut] > 0
            samples.append(
                tools.Expected(
                    split="test" if mask.any() else None,
                    file_name=f"{name}_{part}.png",
                    category="ksdd",
                    label=int(mask.any()),
                    image=image[cut],
                    mask=mask if mask.any() else None,
                    defect="" if mask.any() else "good",
                )
            )
    (root / "KolektorSDD/kos01/Thumbs.db").write_text("x")
    return tools.Miniature(samples)
