"""Making records of samples; every image is decoded and checked."""

import dataclasses
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zsad_jax.data.checks import Examined, examine
from zsad_jax.data.dataset import Encoded, Lazy, Sample
from zsad_jax.data.issues import Issue
from zsad_jax.data.protocols import prompt_name


class Record(NamedTuple):
    """The record of a sample, with its issues and notes."""

    fields: dict[str, Any]
    issues: list[Issue]
    notes: list[Issue]


def encode(sample: Sample, dataset: str) -> Record:
    """Reads and checks the files of a sample, and makes its record.

    Args:
      sample: of a listing; one whose category's name in prompts is not set gets that of the protocol.
      dataset: the benchmark's key.
    """
    # Read once, so that the bytes that are checked are those that are stored.
    image = read(sample.image)
    masks = tuple(map(read, sample.masks))
    found = examine(dataclasses.replace(sample, image=image, mask=masks or None))
    name = sample.prompt_name
    if name == "object":
        name = prompt_name(sample.category, dataset=dataset)
    fields = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    fields |= {"image": image, "mask": _mask_bytes(masks, found), "prompt_name": name}
    # A record has one mask: parts that cannot be joined are dropped, a single unreadable mask is kept as it is.
    fields["has_mask"] = sample.has_mask and (found.mask is not None or len(masks) < 2)
    return Record(fields, found.issues, found.notes)


def _mask_bytes(masks: tuple[bytes, ...], found: Examined) -> bytes:
    """Returns the mask's own bytes; zeros where there is none; several joined to one."""
    if not masks or (len(masks) > 1 and found.mask is None):
        return mask_to_png(np.zeros((found.image.size if found.image else (1, 1))[::-1], np.bool_))
    return masks[0] if found.mask is None or len(masks) == 1 else mask_to_png(found.mask)


def read(encoded: Encoded) -> bytes:
    """Returns the bytes of an image file, wherever they come from."""
    if isinstance(encoded, Lazy):
        return encoded.read()
    return encoded if isinstance(encoded, bytes) else pathlib.Path(encoded).read_bytes()


def mask_to_png(mask: np.ndarray) -> bytes:
    """Encodes a mask as a PNG with 255 where it is True."""
    return image_to_png(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)))


def image_to_png(image: Image.Image) -> bytes:
    """Encodes an image as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
