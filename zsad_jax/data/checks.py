"""What can be wrong with a sample, told by decoding it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from zsad_jax.data.base import Sample
from zsad_jax.data.preprocess import UnreadableImage, decode_image, decode_mask, read_mask


class Examined(NamedTuple):
    """A decoded sample.

    Attributes:
      size: (width, height) of the image; None when it cannot be read.
      mask: the ground truth, several parts joined; None where there is none that can be read.
      faults: what keeps the sample, or its mask, from being used.
      notes: what is worth knowing but harms nothing.
    """

    size: tuple[int, int] | None
    mask: Bool[np.ndarray, "H W"] | None
    faults: list[str]
    notes: list[str]


def examine(sample: Sample) -> Examined:
    """Decodes a sample in full and says, in words, everything that is wrong with it."""
    faults: list[str] = []
    size, mask = None, None
    try:
        size = decode_image(sample.image).image.size
    except UnreadableImage as error:
        faults.append(error.reason)
    if sample.mask is None:
        return Examined(size, None, faults, [])
    try:
        mask = decode_mask(sample.mask)
    except UnreadableImage as error:
        return Examined(size, None, [*faults, f"its mask cannot be used: {error.reason}"], [])
    height, width = mask.shape
    if size is not None and size != (width, height):
        faults.append(f"its mask is {width}x{height}, the image {size[0]}x{size[1]}")
    if sample.label and not mask.any():
        faults.append("it is anomalous and its mask is empty")
    return Examined(size, mask, faults, _levels(sample))


def _levels(sample: Sample) -> list[str]:
    """A note on a mask that is no mere yes or no: JPEG noise, class indices, soft edges."""
    parts = sample.mask if isinstance(sample.mask, tuple) else (sample.mask,)
    levels = max(_count_levels(read_mask(part)) for part in parts if part is not None)
    return [f"its mask has {levels} levels; all above 0 are taken as defect"] if levels > 2 else []


def _count_levels(values: Shaped[np.ndarray, "H W"]) -> int:
    if values.dtype == np.uint8:
        return int(np.count_nonzero(np.bincount(values.ravel(), minlength=256)))
    return len(np.unique(values))
