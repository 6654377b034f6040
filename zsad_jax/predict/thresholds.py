"""Decisions on scores and maps: thresholds, given or from known-good images, and regions."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from zsad_jax.utils.errors import UserError, agree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold on image scores: a number, or the quantile over the known-good images of a path."""

    value: float | None = None
    good: str = ""
    quantile: float = 0.0


def parse_threshold(text: str) -> Threshold:
    """Reads "0.6" or "good_folder:0.99"; raises `UserError` if it is neither."""
    value = _as_number(text)
    if value is not None:
        return Threshold(value=value)
    good, _, share = text.rpartition(":")
    quantile = _as_number(share)
    if not good or quantile is None or not 0 < quantile < 1:
        raise UserError(
            f"The threshold {text!r} is not valid. Expected a number, or FOLDER:QUANTILE with a quantile"
            " between 0 and 1. Give, for example, 0.6 or good_images:0.99."
        )
    return Threshold(good=good, quantile=quantile)


def parse_scale(text: str) -> tuple[float, float]:
    """Reads "lo,hi", the ends of a color scale; raises `UserError` if they are not increasing numbers."""
    values = [_as_number(part) for part in text.split(",")]
    low, high = values if len(values) == 2 else (None, None)
    if low is None or high is None or not low < high:
        raise UserError(
            f"The scale {text!r} is not valid. Expected LOW,HIGH with LOW < HIGH. Give, for example, 0,1."
        )
    return low, high


def quantile_threshold(scores: Sequence[float], quantile: float) -> float:
    """Returns the lowest threshold with at least this share of the scores below it."""
    # An observed score, not interpolated, and the next float32 above it is the lowest that clears it.
    highest = np.quantile(np.asarray(scores, np.float32), quantile, method="inverted_cdf")
    return shortest(np.nextafter(highest, np.float32(np.inf)))  # a score equal to it is anomalous


def describe_support(count: int, quantile: float) -> str:
    """Returns why so few images cannot support a quantile; "" if they can."""
    # On average, at least one image must be above it: count (1 - q) >= 1. As floats, 1 / (1 - 0.9) > 10.
    needed = math.ceil(1 / (1 - quantile) - 1e-9)
    if count >= needed:
        return ""
    available = agree(count, f"{count} is", f"{count} are")
    return (
        f"A quantile of {quantile:g} needs at least {needed} known-good images, but only {available} available."
        " The threshold is just above the highest of their scores, and the false-positive rate is unknown."
    )


def shortest(value: float | np.floating[Any]) -> float:
    """Returns a float32 value as the number with the fewest digits that rounds to it."""
    # A float32 score of 0.1 is 0.10000000149 in Python's numbers, which no user would type as a threshold.
    return float(str(np.float32(value)))


def decide(score: float, threshold: float) -> Literal["normal", "anomalous"]:
    """Returns "anomalous" if score >= threshold, both as float32, the precision of scores."""
    # Rounded alike: as Python's numbers, a float32 score of 0.7 is below a threshold of 0.7.
    return "anomalous" if np.float32(score) >= np.float32(threshold) else "normal"


def find_regions(
    anomaly_map: Float[np.ndarray, "h w"], threshold: float, size: tuple[int, int]
) -> tuple[Bool[np.ndarray, "h w"], list[dict[str, Any]]]:
    """Finds the parts of a map that reach a threshold.

    Returns the mask at the map's resolution, and its 8-connected regions, highest peak first: "box" [left,
    top, width, height] and "area" in pixels of the image of `size` (height, width), "peak" the highest value.
    """
    import cv2

    # 8-connected: a thin diagonal scratch is one region.
    mask = anomaly_map >= threshold
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count == 1:  # the background alone
        return mask, []
    # OpenCV returns box and area of a component, but nothing about the values in it.
    peaks = np.full(count, -np.inf)
    np.maximum.at(peaks, labels[mask].astype(np.intp), anomaly_map[mask])
    down, across = size[0] / mask.shape[0], size[1] / mask.shape[1]
    regions = []
    for (left, top, width, height, area), peak in zip(stats[1:].tolist(), peaks[1:], strict=True):
        # Rounded outwards, so that the box of the image covers the region of the map.
        x, y = math.floor(left * across), math.floor(top * down)
        right, bottom = math.ceil((left + width) * across), math.ceil((top + height) * down)
        box = [x, y, min(right, size[1]) - x, min(bottom, size[0]) - y]
        regions.append({"box": box, "area": round(area * across * down), "peak": shortest(peak)})
    return mask, sorted(regions, key=lambda region: -region["peak"])


def _as_number(text: str) -> float | None:
    """Returns a finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
