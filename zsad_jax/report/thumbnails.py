"""Small pictures for the page, as data URIs."""

import base64
import io

import numpy as np

from zsad_jax.evaluate import Case
from zsad_jax.report.pictures import colourise, overlay
from zsad_jax.utils.images import Picture, draw_outline, fit

LONGEST_SIDE = 260  # of one picture, in pixels
GAP = 4


def case_strip(case: Case, *, scale: tuple[float, float]) -> Picture:
    """Image with the ground truth outlined, anomaly map and overlay, side by side."""
    image = fit(case.image, LONGEST_SIDE)
    heat = colourise(case.anomaly_map, scale=scale, size=image.shape[:2])
    over = overlay(image, case.anomaly_map, scale=scale)
    if case.mask is not None and np.any(case.mask):
        image = draw_outline(image, case.mask)
    gap = np.full((image.shape[0], GAP, 3), 128, np.uint8)
    return np.concatenate([image, gap, heat, gap, over], axis=1)


def data_uri(case: Case, *, scale: tuple[float, float]) -> str:
    """A case's strip as a JPEG inside a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(case_strip(case, scale=scale)).save(file, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
