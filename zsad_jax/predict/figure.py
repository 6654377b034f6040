"""One picture of a prediction: overlay and heat map side by side, with the scale and what was found."""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from zsad_jax.report import colourise, overlay
from zsad_jax.utils.images import ANOMALOUS, INK, Picture, draw_outline, load_font, shorten

MARGIN, GAP, BAR = 14, 8, 14  # pixels
FONT_SIZE = 15
LINE = 21
NARROWEST = 420  # of the text, in pixels
SHORTEST_PANEL = (
    256  # the longer side of a panel is at least this, so that small images can be seen
)


def draw_figure(
    image: Image.Image,
    anomaly_map: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"] | None = None,
    *,
    scale: tuple[float, float],
    lines: tuple[str, ...],
    warning: str = "",
) -> Image.Image:
    """Overlay, heat map and colour scale under a few lines of words.

    Args:
      image: 8 bits, any size.
      anomaly_map: of the image's aspect; the panels have its size, unless that is very small.
      mask: the anomalous pixels, outlined in the overlay.
      scale: (low, high), the values of the darkest and the brightest colour.
      lines: written above; what is too long is shortened in its middle.
      warning: written below them, in another colour.
    """
    width, height = _panel_size(anomaly_map)
    if image.mode != "L":  # a gray image is converted when it is small
        image = image.convert("RGB")
    resized = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    shown = np.asarray(resized.convert("RGB"))
    over = overlay(shown, anomaly_map, scale=scale)
    if mask is not None and mask.any():
        over = draw_outline(over, mask)
    heat = colourise(anomaly_map, scale=scale, size=(height, width))

    words = [(line, INK) for line in lines] + ([(warning, ANOMALOUS)] if warning else [])
    ticks = [f"{value:.3g}" for value in np.linspace(scale[1], scale[0], 3)]
    ticks_width = round(max(load_font(FONT_SIZE).getlength(tick) for tick in ticks))
    inside = max(2 * width + 2 * GAP + BAR + 4 + ticks_width, NARROWEST)
    top = MARGIN + LINE * len(words) + GAP
    canvas = Image.new("RGB", (inside + 2 * MARGIN, top + height + MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    font = load_font(FONT_SIZE)
    for number, (line, colour) in enumerate(words):
        pen.text((MARGIN, MARGIN + LINE * number), shorten(line, inside, font), colour, font)
    canvas.paste(Image.fromarray(over), (MARGIN, top))
    canvas.paste(Image.fromarray(heat), (MARGIN + width + GAP, top))
    _draw_scale(canvas, (MARGIN + 2 * (width + GAP), top), height, scale, ticks)
    return canvas


def _panel_size(anomaly_map: np.ndarray) -> tuple[int, int]:
    """(width, height) of a panel."""
    height, width = anomaly_map.shape
    factor = max(SHORTEST_PANEL / max(height, width), 1)
    return round(width * factor), round(height * factor)


def _draw_scale(
    canvas: Image.Image,
    corner: tuple[int, int],
    height: int,
    scale: tuple[float, float],
    ticks: list[str],
) -> None:
    """The colour bar, with its values at the top, in the middle and at the bottom where there is room."""
    left, top = corner
    values = np.linspace(scale[1], scale[0], max(height, 2), dtype=np.float32)[:, None]
    bar: Picture = colourise(values, scale=scale, size=(height, BAR))
    canvas.paste(Image.fromarray(bar), corner)
    pen = ImageDraw.Draw(canvas)
    room = [0, 1, 2] if height >= 3 * LINE else [0, 2] if height >= 2 * LINE else []
    for number in room:
        place = (left + BAR + 4, top + round(number / 2 * (height - FONT_SIZE)) - 2)
        pen.text(place, ticks[number], INK, load_font(FONT_SIZE))
