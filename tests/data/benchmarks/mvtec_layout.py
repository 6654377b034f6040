"""Writer of categories in MVTec's layout and similar ones, loaded by the miniatures with runpy."""

import numpy as np


def write_category(
    root,
    tools,
    top,
    category,
    numbers,
    *,
    stem="{:03}",
    suffix=".png",
    masks=("{}_mask.png",),
    values=(0, 255),
    mode="RGB",
    normal="good",
    ground_truth="ground_truth",
):
    """Writes a category; returns the samples as constructed.

    `numbers` has the number of images per folder, such as {"test/hole": 2}. Each anomalous image gets all
    masks, each with other pixels; {} in their names is the image's stem.
    """
    samples = []
    for folder, number in numbers.items():
        below, kind = folder.split("/")
        for name in map(stem.format, range(number)):
            file_name = f"{category}/{folder}/{name}{suffix}"
            seed = len(samples)
            image = tools.save(tools.draw(seed, mode=mode), root / top / file_name)
            drawn = [] if kind == normal else masks
            written = [
                tools.save_mask(
                    tools.draw_mask(100 * seed + i, values=values),
                    root / top / category / ground_truth / kind / pattern.format(name),
                )
                for i, pattern in enumerate(drawn)
            ]
            samples.append(
                tools.Expected(
                    split=below.removesuffix("_public"),
                    file_name=file_name,
                    category=category,
                    label=int(bool(written)),
                    image=image,
                    mask=np.logical_or.reduce(written) if written else None,
                    defect=kind if written else "good",
                )
            )
    return samples
