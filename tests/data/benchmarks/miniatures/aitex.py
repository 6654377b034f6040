"""AITEX miniature: strips of two fabrics with two masks, no mask and an empty mask; one is shorter."""

import numpy as np
from PIL import Image

# strip: (width in pixels, the patches marked by each mask)
STRIPS = {
    "0001_002_00": (1024, {"_mask": (1,)}),
    "0044_019_04": (1024, {"_mask1": (0, 2), "_mask2": (2, 3)}),
    "0094_027_05": (980, {"_mask": (3,)}),
    "0100_025_08": (1024, {}),
    "0106_010_03": (1024, {"_mask": ()}),
}
DEFECTS = {"002": "Broken_end", "019": "Fuzzyball", "027": "Knots"}


def make(root, tools):
    samples = []
    for number, (name, (width, marked)) in enumerate(STRIPS.items()):
        image = save_strip(root, f"Defect_images/{name}.png", number, width, tools)
        joined = np.zeros((256, width), np.bool_)
        for suffix, patches in marked.items():
            mask = np.zeros((256, width), np.uint8)
            for patch in patches:
                mask[10 + number, 256 * patch + (5 if suffix == "_mask1" else 9)] = 255
            path = root / f"Mask_images/{name}{suffix}.png"
            joined |= tools.save_mask(Image.fromarray(mask), path)
        for patch, mask in enumerate(cut(joined)):
            if mask.any():
                file_name = f"Defect_images/{name}_{patch}.png"
                defect = DEFECTS[name.split("_")[1]]
                sample = ("test", file_name, "aitex", 1, cut(image)[patch], mask, defect)
                samples.append(tools.Expected(*sample))
    for fabric, name in (("2306881-210020u", "0002_000_00"), ("2311694-1930c7u", "0003_000_01")):
        strip = f"NODefect_images/{fabric}/{name}"
        image = save_strip(root, f"{strip}.png", int(name[:4]) + 100, 1024, tools)
        for patch, pixels in enumerate(cut(image)):
            file_name = f"{strip}_{patch}.png"
            samples.append(tools.Expected(None, file_name, "aitex", 0, pixels, None, "good"))
    return tools.Miniature(
        samples,
        issues=(
            ("Defect_images/0100_025_08.png", "mask_missing"),
            ("Defect_images/0106_010_03.png", "mask_empty"),
        ),
    )


def save_strip(root, name, seed, width, tools):
    return tools.save(tools.draw(seed, mode="L", size=(width, 256)), root / name)


def cut(pixels):
    return [pixels[:, left : left + 256] for left in range(0, pixels.shape[1], 256)]
