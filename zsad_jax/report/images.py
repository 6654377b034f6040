"""Pictures of cases: image, ground truth, anomaly map and overlay on one color scale."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from zsad_jax.evaluate import Case
from zsad_jax.report import names
from zsad_jax.utils.images import (
    INK,
    Picture,
    Scale,
    Strip,
    colorize,
    draw_strips,
    fit,
    outline,
    overlay,
    paper,
)

LONGEST_SIDE = 260  # of one picture, in pixels
GAP = 4  # between the pictures of a thumbnail


def heat_map(case: Case, *, scale: Scale, title: str) -> Image.Image:
    """Draws the strip of one case below its title, file name, score and label."""
    words = (title, case.file_name, f"score {case.score:.3f}", names.LABELS[case.label])
    return draw_strips([_strip(case, [" · ".join(words)], scale)], scale=scale)


def gallery(cases: Sequence[Case], *, scale: Scale, title: str) -> Image.Image:
    """Draws the strips of several cases below a title, each below its category, label and score."""
    strips: list[Strip] = []
    for case in cases:
        category = names.category_name(case.category)
        words = f"{category} · {names.LABELS[case.label]} · score {case.score:.3f}"
        strips.append(_strip(case, [words] if strips else [title, words], scale))
    return draw_strips(strips, scale=scale)


def thumbnail(case: Case, *, scale: Scale) -> Picture:
    """Returns image with the ground truth outlined, anomaly map and overlay, side by side."""
    image, heat, over = _pictures(case, scale)
    # Gray is visible on the light and on the dark page.
    gap = np.full((image.shape[0], GAP, 3), 128, np.uint8)
    return np.concatenate([outline(image, case.mask), gap, heat, gap, over], axis=1)


def data_uri(picture: Picture) -> str:
    """Returns a picture as a JPEG inside a data URI."""
    file = io.BytesIO()
    # JPEG: as PNGs, noisy photographs would be several times as large, and a page has up to 120.
    Image.fromarray(picture).save(file, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _strip(case: Case, lines: Sequence[str], scale: Scale) -> Strip:
    image, heat, over = _pictures(case, scale)
    # An anomalous image without a mask is not the same as an image without a defect.
    if case.mask is not None and case.mask.any():
        truth = outline(image, case.mask)
    else:
        truth = paper(image.shape[:2], "no mask" if case.label else "no defect")
    panels = (
        ("image", image),
        ("ground truth", truth),
        ("anomaly map", heat),
        ("overlay", outline(over, case.mask)),
    )
    return Strip([(line, INK) for line in lines], panels)


def _pictures(case: Case, scale: Scale) -> tuple[Picture, Picture, Picture]:
    image = fit(case.image, LONGEST_SIDE)
    heat = colorize(case.anomaly_map, scale=scale, size=image.shape[:2])
    return image, heat, overlay(image, case.anomaly_map, scale=scale)
