"""Br35H miniature with unlabeled images in pred/ and in the folders of the newer upload."""


def make(root, tools):
    samples = []
    names = {"no": ("No12.jpg", "no0.jpg", "no1499.jpg"), "yes": ("y0.jpg", "y1.jpg", "y1499.jpg")}
    for label, (folder, files) in enumerate(names.items()):
        for seed, name in enumerate(files):
            drawn = tools.draw(seed + 10 * label, mode=("RGB", "L")[seed % 2])
            samples.append(
                tools.Expected(
                    split="test",
                    file_name=f"{folder}/{name}",
                    category="br35h",
                    label=label,
                    image=tools.save(drawn, root / folder / name),
                    defect="tumor" if label else "good",
                    has_mask=False,
                )
            )
    for name in ("pred/pred0.jpg", "Br35H-Mask-RCNN/TRAIN/y10.jpg", "Br35H-Mask-RCNN/VAL/y2.jpg"):
        tools.save(tools.draw(5), root / name)
    return tools.Miniature(samples)
