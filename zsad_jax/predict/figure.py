"""The pictures of a prediction: image, heat map and overlay side by side, large and as a thumbnail."""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from zsad_jax.utils.images import Picture, Strip, colorize, draw_strips, fit, outline, overlay

LONGEST_PANEL = 640  # three fit side by side on a wide screen
SHORTEST_PANEL = 256  # a smaller longest side is enlarged, so that small images can be seen
THUMBNAIL = 128  # pixels of a longest side


def resize_panel(image: Image.Image, size: tuple[int, int]) -> Picture:
    """Resizes an image to a size (width, height), or larger if that is very small."""
    factor = max(SHORTEST_PANEL / max(size), 1)
    width, height = (round(side * factor) for side in size)
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
    scale: tuple[float, float],
    lines: list[tuple[str, str]],
) -> Image.Image:
    """Draws image, heat map, overlay and color scale below a few lines of text, each with its color.

    The panel is from `resize_panel`, the map has the image's aspect, and the mask is outlined in the overlay.
    """
    heat = colorize(anomaly_map, scale=scale, size=panel.shape[:2])
    over = outline(overlay(panel, anomaly_map, scale=scale), mask)
    panels = [("image", panel), ("anomaly map", heat), ("overlay", over)]
    return draw_strips([Strip(lines, panels)], scale=scale)


def draw_thumbnail(
    panel: Picture, anomaly_map: Float[np.ndarray, "h w"], *, scale: tuple[float, float]
) -> Image.Image:
    """Draws image and overlay side by side."""
    small = fit(panel, THUMBNAIL)
    gap = np.full((len(small), 4, 3), 255, np.uint8)
    parts = [small, gap, overlay(small, anomaly_map, scale=scale)]
    return Image.fromarray(np.concatenate(parts, axis=1))
