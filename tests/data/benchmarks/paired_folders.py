"""Writer of images and masks in two folders, loaded by the miniatures with runpy."""

from PIL import Image


def write_pairs(
    root,
    tools,
    stems,
    *,
    image="images/{}.png",
    mask="masks/{}.png",
    split="test",
    mode="RGB",
    mask_mode="L",
    size=(24, 16),
    **fields,
):
    """Writes an anomalous image and its mask per stem, which replaces {} in both names.

    JPEG masks get gray levels between 0 and 255. Returns the samples as constructed.
    """
    samples = []
    for seed, stem in enumerate(stems):
        drawn = Image.new(mask_mode, size)
        drawn.paste("white", (2 + seed % 5, 3, 15, 11))
        name = image.format(stem)
        samples.append(
            tools.Expected(
                split=split,
                file_name=name,
                label=1,
                image=tools.save(tools.draw(seed, mode=mode, size=size), root / name),
                mask=tools.save_mask(drawn, root / mask.format(stem)),
                **fields,
            )
        )
    return samples


def note_levels(samples):
    """Returns the expected notes on masks with more than two levels."""
    return tuple((sample.file_name, "mask_levels") for sample in samples)
