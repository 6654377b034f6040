"""Ground truth drawn over its image, and the words beside pictures: what contact sheets and reports share."""

import functools
import logging
import os
import pathlib
import warnings

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFont

OUTLINE = (0, 229, 255)
INK = "#1b1f24"
NORMAL, ANOMALOUS = "#0072b2", "#d55e00"  # told apart by every kind of colour vision

Picture = UInt8[np.ndarray, "H W 3"]


def draw_outline(image: Picture, mask: Bool[np.ndarray, "h w"]) -> Picture:
    """The image with a bright, dark-rimmed line around the mask, just outside of it.

    Args:
      image: at any resolution.
      mask: at any resolution; image and mask cover the same area. However small a defect and the image,
        it keeps a pixel.
    """
    import cv2

    height, width = image.shape[:2]
    whole = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).convert("F")
    inside = (np.asarray(whole.resize((width, height), Image.Resampling.BOX)) > 0).astype(np.uint8)
    thickness = 1 + max(height, width) // 400
    line, rim = (
        cv2.dilate(inside, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
        for reach in (thickness, thickness + 1)
    )
    outlined = image.copy()
    outlined[rim & ~line] = 0
    outlined[line & (inside == 0)] = OUTLINE
    return outlined


def fit(image: Picture, longest: int) -> Picture:
    """The image with its longest side made `longest` pixels, its aspect kept."""
    height, width = (
        max(round(side * longest / max(image.shape[:2])), 1) for side in image.shape[:2]
    )
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def printable(text: str) -> str:
    """Returns a text with what cannot be drawn escaped: line breaks, control characters, other bytes."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def shorten(line: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """Returns the line, printable and with its middle removed so that it is at most `width` pixels wide."""
    line = printable(line)
    keep = len(line)
    shortened = line
    while keep > 8 and font.getlength(shortened) > width:
        keep -= 1
        shortened = f"{line[: keep - keep // 2]}…{line[-(keep // 2) :]}"
    return shortened


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the reports' figures, at a size in pixels."""
    import matplotlib

    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)


def set_up_decoders() -> None:
    """Stops comments of Pillow and OpenCV on images, which raise if unreadable, and bounds Pillow's memory."""
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # Read when cv2 is imported, here and in worker processes.
    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
    # glibc returns freed blocks of this size; Pillow's own of 16 MiB stay in the arena of each thread.
    Image.core.set_block_size(64 << 20)
