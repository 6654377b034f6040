"""Anomaly maps as colours, alone and over the image: plain arrays and Pillow, at any resolution."""

import functools

import numpy as np
from jaxtyping import Float, UInt8

from zsad_jax.utils.images import Picture

COLOUR_MAP = "inferno"  # perceptually uniform, ordered by lightness for every kind of colour vision
ROWS_AT_ONCE = 256  # bounds the memory that a picture of tens of megapixels takes


def colourise(
    anomaly_map: Float[np.ndarray, "h w"],
    *,
    scale: tuple[float, float],
    size: tuple[int, int] | None = None,
) -> Picture:
    """An anomaly map in colours.

    Args:
      anomaly_map: any range; values outside `scale` take the colour of its nearer end.
      scale: (low, high), the values of the darkest and the brightest colour. Never taken from the map.
      size: (H, W) of the picture; by default the map's own.
    """
    height, width = size or anomaly_map.shape
    picture = np.empty((height, width, 3), np.uint8)
    for rows in _strips(height):
        picture[rows] = _palette()[_levels(anomaly_map, (height, width), rows, scale=scale)]
    return picture


def overlay(
    image: Picture,
    anomaly_map: Float[np.ndarray, "h w"],
    *,
    scale: tuple[float, float],
    alpha: float = 0.75,
) -> Picture:
    """An anomaly map laid over its image, at the image's resolution.

    The colour covers the image the more, the higher the map: where the map is at the low end, the image
    shows untouched.

    Args:
      image: what the map belongs to; map and image cover the same area.
      anomaly_map: at any resolution, interpolated bilinearly.
      scale: (low, high), as for `colourise`.
      alpha: opacity at the high end, 0 to 1.
    """
    picture = np.empty_like(image)
    opacity = np.linspace(0, alpha, 256, dtype=np.float32)[:, None]
    for rows in _strips(image.shape[0]):
        levels = _levels(anomaly_map, image.shape[:2], rows, scale=scale)
        cover = opacity[levels]
        mixed = image[rows] * (1 - cover) + _palette()[levels] * cover
        picture[rows] = np.rint(mixed)
    return picture


def palette_stops(count: int) -> list[str]:
    """Colours of the scale from low to high, evenly spaced, as "#rrggbb"."""
    positions = np.linspace(0, 255, count).round().astype(int)
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in _palette()[positions].tolist()]


@functools.cache
def _palette() -> UInt8[np.ndarray, "256 3"]:
    from matplotlib import colormaps

    return (colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _strips(height: int) -> list[slice]:
    return [slice(row, min(row + ROWS_AT_ONCE, height)) for row in range(0, height, ROWS_AT_ONCE)]


def _levels(
    anomaly_map: Float[np.ndarray, "h w"],
    size: tuple[int, int],
    rows: slice,
    *,
    scale: tuple[float, float],
) -> UInt8[np.ndarray, "r W"]:
    """Rows of the map, resized to `size`, as positions 0 … 255 on the scale."""
    from PIL import Image

    low, high = scale
    height, width = size
    source = Image.fromarray(np.asarray(anomaly_map, np.float32))
    # Pillow's filter reaches beyond the box, so strips join without a seam.
    box = (0, rows.start * source.height / height, source.width, rows.stop * source.height / height)
    resized = source.resize((width, rows.stop - rows.start), Image.Resampling.BILINEAR, box=box)
    share = (np.asarray(resized) - low) / (high - low)
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
