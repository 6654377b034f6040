"""From an image file to what a vision tower eats: decode, resize, normalise."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a backbone wants its images.

    Attributes:
      image_size: side S of the square that an image is resized to, aspect ratio ignored.
      resize: Pillow's kernel, antialiased, 8-bit result.
      mean, std: per channel, on values in [0, 1].
      rgb_first: whether the conversion to RGB precedes resizing (TIPS yes, CLIP no).
    """

    image_size: int
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rgb_first: bool = True

    def normalize(self, images):
        """8-bit images to the tower's float input; numpy in, numpy out, and traceable under jit."""
        scaled = images / images.dtype.type(255) if images.dtype.kind == "f" else images.astype("float32") / 255
        return (scaled - self.mean) / self.std
