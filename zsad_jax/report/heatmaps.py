"""Heat-map figures: image, ground truth, map and overlay on one colour scale."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from zsad_jax.evaluate import Case
from zsad_jax.report import names, pictures
from zsad_jax.report.figures import LABELS, new_figure, style
from zsad_jax.utils.images import Picture, draw_outline, fit, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL_PIXELS = 480  # more of an image would not be seen in a panel
PAPER = 235  # grey of a panel without a picture

# The layout, in inches. Worked out here, since matplotlib's own takes half of the drawing time.
PANEL, GAP, MARGIN = 2.6, 0.1, 0.12
CAPTION, HEADS, TITLE = 0.3, 0.22, 0.36
BAR_SPACE, BAR = 0.72, 0.12

Panels = list[tuple[str, Picture | str]]  # name, and a picture or words in its place


def heatmap_figure(
    image: Picture,
    anomaly_map: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "mh mw"] | None = None,
    *,
    scale: tuple[float, float],
    file_name: str,
    score: float,
    label: int | None = None,
    title: str = "",
) -> "Figure":
    """Image, ground truth, map and overlay side by side, with the colour bar.

    Args:
      image: the image.
      anomaly_map: its map, at any resolution.
      mask: its ground truth, at any resolution; None where there is none.
      scale: (low, high) of the colours, the same for every figure of a report.
      file_name, score, label: written above; label None = unknown.
      title: further words, the dataset say.
    """
    parts = (
        title,
        printable(file_name),
        f"score {score:.3f}",
        "" if label is None else LABELS[label],
    )
    panels = _panels(image, anomaly_map, mask, scale=scale, label=label)
    return _draw([(" · ".join(part for part in parts if part), panels)], scale=scale)


def gallery(cases: Sequence[Case], *, scale: tuple[float, float], title: str = "") -> "Figure":
    """Several cases below each other on one colour scale: image, ground truth, map, overlay."""
    rows = []
    for case in cases:
        panels = _panels(case.image, case.anomaly_map, case.mask, scale=scale, label=case.label)
        words = (
            f"{names.category_name(case.category)} · {LABELS[case.label]} · score {case.score:.3f}"
        )
        rows.append((words, panels))
    return _draw(rows, scale=scale, title=title)


def _panels(
    image: Picture,
    anomaly_map: np.ndarray,
    mask: np.ndarray | None,
    *,
    scale: tuple[float, float],
    label: int | None,
) -> Panels:
    image = fit(image, PANEL_PIXELS)
    over = pictures.overlay(image, anomaly_map, scale=scale)
    panels: Panels = [("image", image)]
    if mask is not None and np.any(mask):
        panels.append(("ground truth", draw_outline(image, mask)))
        over = draw_outline(over, mask)
    elif label is not None:
        panels.append(("ground truth", "no defect" if label == 0 else "no mask"))
    heat = pictures.colourise(anomaly_map, scale=scale, size=image.shape[:2])
    return [*panels, ("anomaly map", heat), ("overlay", over)]


def _draw(
    rows: Sequence[tuple[str, Panels]], *, scale: tuple[float, float], title: str = ""
) -> "Figure":
    """Draws rows of panels below each other, each under its caption, and the colour bar beside them."""
    shapes = [panels[0][1].shape for _, panels in rows if isinstance(panels[0][1], np.ndarray)]
    heights = [float(np.clip(PANEL * height / width, 0.8, 4.0)) for height, width, _ in shapes]
    columns = max(len(panels) for _, panels in rows)
    top = TITLE if title else 0.0
    width = 2 * MARGIN + columns * (PANEL + GAP) + BAR_SPACE
    total = top + HEADS + sum(heights) + len(rows) * CAPTION + MARGIN
    with style():
        figure = new_figure((width, total), layout=None)
        if title:
            figure.text(MARGIN / width, 1 - 0.22 / total, title, fontsize=11)
        below = total - top
        for row, ((caption, panels), height) in enumerate(zip(rows, heights, strict=True)):
            figure.text(MARGIN / width, (below - 0.21) / total, caption, fontsize=9.5)
            below -= CAPTION + height + (HEADS if row == 0 else 0)
            for column, (name, picture) in enumerate(panels):
                left = MARGIN + column * (PANEL + GAP)
                place = (left / width, below / total, PANEL / width, height / total)
                _draw_panel(figure, place, picture, name=name if row == 0 else "")
        bar_left = MARGIN + columns * (PANEL + GAP)
        bar_top = total - top - CAPTION - HEADS
        bar = (bar_left / width, below / total, BAR / width, (bar_top - below) / total)
        _draw_colour_bar(figure, bar, scale)
    return figure


def _draw_panel(
    figure: "Figure",
    place: tuple[float, float, float, float],
    picture: Picture | str,
    *,
    name: str,
) -> None:
    axes = figure.add_axes(place)
    axes.set_axis_off()
    if name:
        axes.set_title(name, pad=4)
    if isinstance(picture, str):
        axes.imshow(np.full((1, 1, 3), PAPER, np.uint8), aspect="auto")
        axes.text(0, 0, picture, ha="center", va="center", color="#555555")
    else:
        axes.imshow(picture)


def _draw_colour_bar(
    figure: "Figure", place: tuple[float, float, float, float], scale: tuple[float, float]
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(*scale), pictures.COLOUR_MAP)
    figure.colorbar(colours, cax=figure.add_axes(place), label="anomaly map")
