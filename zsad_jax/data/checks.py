"""Checks of a sample that decode its files."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.data.preprocess import (
    Decoded,
    UnreadableImage,
    binarize,
    open_image,
    read_masks,
    turn_mask,
)

INVERTED_BORDER = 0.95  # of the border: large defects reach parts of it
BAND_VALUES = 2**22  # of a mask that are counted at a time, to save memory


class Examined(NamedTuple):
    """A decoded sample.

    Attributes:
      image: 8 bits a channel, in its color mode; None if it cannot be read.
      mask: ground truth, with several parts joined; None if there is none that can be used.
      usable: whether the image can be read and its mask, if it should have one, can be used.
      issues: problems with the sample.
      notes: remarks that do not affect results.
    """

    image: Image.Image | None
    mask: Bool[np.ndarray, "H W"] | None
    usable: bool
    issues: list[Issue]
    notes: list[Issue]


def examine(sample: Sample, *, threshold: int = 0, bit_depth: int = 16) -> Examined:
    """Decodes a sample in full and reports all problems with it.

    An anomalous image whose mask is empty, or covers it, is usable: the published loaders count all of its
    pixels as normal, or as anomalous.

    Args:
      sample: its mask is examined if it `has_mask`.
      threshold: largest gray value (of 255) in a mask that is not a defect.
      bit_depth: see `Preprocess`.
    """
    name = sample.file_name
    issues: list[Issue] = []
    notes: list[Issue] = []
    decoded = None
    try:
        decoded = open_image(sample.image, bit_depth=bit_depth)
        notes += [note._replace(file=name) for note in decoded.notes]
    except UnreadableImage as error:
        issues.append(Issue("image_unreadable", name, error.reason))
    image = None if decoded is None else decoded.image
    if sample.mask is None or not sample.has_mask:
        return Examined(image, None, image is not None, issues, notes)
    try:
        parts, orientations, remarks = read_masks(sample.mask)
        notes += [note._replace(file=name) for note in remarks]
    except UnreadableImage as error:
        issues.append(Issue("mask_unreadable", name, error.reason))
        return Examined(image, None, False, issues, notes)
    drawn = binarize(parts, threshold=threshold)
    mask: Bool[np.ndarray, "H W"] | None = drawn
    if decoded is not None:
        mask, issue = _fit(drawn, decoded, orientations)
        if issue:
            (notes if issue.kind == "mask_resized" else issues).append(issue._replace(file=name))
    usable = image is not None and mask is not None
    # The other issues are doubts about a mask that is used all the same.
    if mask is not None and sample.label and not mask.any():
        issues.append(Issue("mask_empty", name))
    if mask is not None and mask.all():
        issues.append(Issue("mask_full", name))
    elif mask is not None and (share := mask.mean()) > 0.5:
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
        if border > INVERTED_BORDER:
            issues.append(Issue("mask_inverted", name, f"{share:.0%} of the image"))
    levels = max(map(_count_levels, parts))
    if levels > 2:
        notes.append(Issue("mask_levels", name, f"{levels} levels, threshold {threshold}"))
    return Examined(image, mask, usable, issues, notes)


def _fit(
    mask: Bool[np.ndarray, "H W"], decoded: Decoded, orientations: set[int]
) -> tuple[Bool[np.ndarray, "h w"] | None, Issue | None]:
    """Returns a mask in the orientation of its image, None if it cannot belong to it, and an issue.

    A mask without EXIF orientation was drawn on the stored pixels or on the turned image; only the sizes
    distinguish these cases.
    """
    height, width = mask.shape
    image = decoded.image
    detail = f"{width}x{height}, the image {image.width}x{image.height}"
    stored = image.size if decoded.orientation < 5 else image.size[::-1]  # from 5 on, sides swap
    if orientations not in ({1}, {decoded.orientation}):
        numbers = ", ".join(map(str, sorted(orientations)))
        return None, Issue("mask_orientation", "", f"{decoded.orientation}, the mask {numbers}")
    if orientations != {decoded.orientation}:
        # Square images and half turns keep the size, so it is unknown whether the mask must be turned.
        if stored == image.size:
            return None, Issue("mask_orientation", "", f"orientation {decoded.orientation}")
        if (width, height) == stored:
            issue = Issue("mask_turned", "", f"orientation {decoded.orientation}")
            return turn_mask(mask, decoded.orientation), issue
    if (width, height) == image.size:
        return mask, None
    # Equal aspect ratios up to one pixel: a mask of half the size has its sides rounded up or down.
    if 2 * abs(width * image.height - height * image.width) <= max(image.size):
        return mask, Issue("mask_resized", "", detail)
    return None, Issue("mask_size", "", detail)


def _count_levels(values: Shaped[np.ndarray, "H W"]) -> int:
    """Counts the gray values; more than two are JPEG noise, class indices or soft edges."""
    levels: set[float] = set()
    for band in np.array_split(values, values.size // BAND_VALUES + 1):
        low, high = band.min(initial=values[0, 0]), band.max(initial=values[0, 0])
        two = np.logical_or(band == low, band == high).all()  # faster than counting
        levels.update((low, high) if two else np.unique(band).tolist())
    return len(levels)
