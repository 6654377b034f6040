"""The picture of a prediction: overlay and heat map side by side, with the scale and what was found."""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from zsad_jax.utils.images import (
    ANOMALOUS,
    INK,
    Picture,
    Scale,
    Strip,
    colorize,
    draw_strips,
    outline,
    overlay,
)

SHORTEST_PANEL = 256  # a smaller longest side is enlarged, so that small images can be seen


def resize_panel(image: Image.Image, map_size: tuple[int, int]) -> Picture:
    """Resizes an image to the size of a map (width, height), or larger if that is very small."""
    factor = max(SHORTEST_PANEL / max(map_size), 1)
    width, height = (round(side * factor) for side in map_size)
    if image.mode != "L":  # a gray image is converted when it is small
        image = image.convert("RGB")
    # Large photographs are first reduced by a whole factor, which is faster.
    resized = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(resized.convert("RGB"))


def draw_figure(
    panel: Picture,
    anomaly_map: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"] | None = None,
    *,
    scale: Scale,
    lines: tuple[str, ...],
    warning: str = "",
) -> Image.Image:
    """Draws overlay, heat map and color scale below a few lines of text.

    The panel is from `resize_panel`, the map has the image's aspect, and the mask is outlined in the overlay.
    Lines that are too long are shortened in their middle; the warning is below them, in another color.
    """
    over = overlay(panel, anomaly_map, scale=scale)
    heat = colorize(anomaly_map, scale=scale, size=panel.shape[:2])
    words = [(line, INK) for line in lines] + [(warning, ANOMALOUS)] * bool(warning)
    return draw_strips([Strip(words, [("", outline(over, mask)), ("", heat)])], scale=scale)
