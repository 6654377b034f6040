"""The picture of a prediction: overlay and heat map side by side, with the scale and what was found."""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from zsad_jax.utils.images import (
    ANOMALOUS,
    INK,
    Scale,
    Strip,
    colorize,
    draw_strips,
    outline,
    overlay,
)

SHORTEST_PANEL = 256  # a smaller longest side is enlarged, so that small images can be seen


def draw_figure(
    image: Image.Image,
    anomaly_map: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"] | None = None,
    *,
    scale: Scale,
    lines: tuple[str, ...],
    warning: str = "",
) -> Image.Image:
    """Draws overlay, heat map and color scale below a few lines of text.

    Args:
      image: 8 bits, any size.
      anomaly_map: of the image's aspect; the panels have its size, unless that is very small.
      mask: the anomalous pixels, outlined in the overlay.
      scale: see `colorize`.
      lines: written above; what is too long is shortened in its middle.
      warning: written below them, in another color.
    """
    height, width = anomaly_map.shape
    factor = max(SHORTEST_PANEL / max(height, width), 1)
    height, width = round(height * factor), round(width * factor)
    if image.mode != "L":  # a gray image is converted when it is small
        image = image.convert("RGB")
    resized = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    over = overlay(np.asarray(resized.convert("RGB")), anomaly_map, scale=scale)
    heat = colorize(anomaly_map, scale=scale, size=(height, width))
    words = [(line, INK) for line in lines] + [(warning, ANOMALOUS)] * bool(warning)
    return draw_strips([Strip(words, [("", outline(over, mask)), ("", heat)])], scale=scale)
