"""What can be wrong with a sample, told by decoding it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from zsad_jax.data.base import Sample
from zsad_jax.data.preprocess import UnreadableImage, binarise, open_image, read_masks


class Examined(NamedTuple):
    """A decoded sample.

    Attributes:
      image: 8 bits a channel, in its own colour mode; None when it cannot be read.
      mask: the ground truth, several parts joined; None where there is none that can be read.
      usable: whether the image can be read and has its mask, of its size, where it should have one.
      faults: what is wrong with the sample; nearly always, what keeps it or its mask from being used.
      notes: what is worth knowing of the mask but harms nothing.
      scaling: how the image was brought to 8 bits, if it had to be.
    """

    image: Image.Image | None
    mask: Bool[np.ndarray, "H W"] | None
    usable: bool
    faults: list[str]
    notes: list[str]
    scaling: str = ""

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the image; None when it cannot be read."""
        return None if self.image is None else self.image.size


def examine(sample: Sample, *, threshold: int = 0) -> Examined:
    """Decodes a sample in full and says, in words, everything that is wrong with it.

    An anomalous image whose mask is empty is told, and stays usable: the published loaders count all of
    its pixels as normal.

    Args:
      sample: of which the mask is looked at if it `has_mask`.
      threshold: largest grey value (of 255) in a mask that is still no defect.
    """
    faults: list[str] = []
    image, scaling = None, ""
    try:
        image, scaling = open_image(sample.image)
    except UnreadableImage as error:
        faults.append(error.reason)
    if sample.mask is None or not sample.has_mask:
        return Examined(image, None, image is not None, faults, [], scaling)
    try:
        values = read_masks(sample.mask)
    except UnreadableImage as error:
        faults.append(f"its mask cannot be used: {error.reason}")
        return Examined(image, None, False, faults, [], scaling)
    mask = binarise(values, threshold=threshold)
    height, width = mask.shape
    if image is not None and image.size != (width, height):
        faults.append(f"its mask is {width}x{height}, the image {image.width}x{image.height}")
    usable = not faults
    if sample.label and not mask.any():
        faults.append("it is anomalous and its mask is empty")
    levels = max(map(_count_levels, values))
    words = f"its mask has {levels} levels; all above {threshold} are taken as defect"
    return Examined(image, mask, usable, faults, [words] if levels > 2 else [], scaling)


def _count_levels(values: Shaped[np.ndarray, "H W"]) -> int:
    """How many grey values there are: more than a yes and a no are JPEG noise, indices or soft edges."""
    low, high = values.min(), values.max()
    if np.logical_or(values == low, values == high).all():  # faster than counting
        return 1 if low == high else 2
    return len(np.unique(values))
