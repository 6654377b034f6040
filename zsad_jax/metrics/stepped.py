"""The per-region overlap as published code computes it, to compare with the papers' tables."""

import typing
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

from zsad_jax.metrics.curve import FPR_LIMIT, Curve

NUM_STEPS = 200
# Library whose `arange` spaces the thresholds in the published code.
Thresholds = Literal["torch", "numpy"]
THRESHOLDS: tuple[str, ...] = typing.get_args(Thresholds)


def stepped_aupro(
    curve: Curve, num_regions: int, *, span: tuple[float, float], thresholds: Thresholds
) -> float:
    """Computes `pixel_aupro_200step` from counted scores.

    Args:
      curve: pixel counts with `overlap`.
      num_regions: number of anomalous regions.
      span: smallest and largest value of the maps.
      thresholds: as for `pixel_aupro_200step`.
    """
    low, high = float(np.float32(span[0])), float(np.float32(span[1]))
    if not (num_regions and curve.negatives.any() and low < high):
        return float("nan")
    steps = _thresholds(low, high, thresholds)
    passed = np.searchsorted(steps, curve.scores.astype(np.float32))  # thresholds below each score

    def rate(counts: Num[np.ndarray, " n"], total: float) -> Float[np.ndarray, " t"]:
        """Returns the share of `counts` above each threshold."""
        histogram = np.bincount(passed, counts, minlength=len(steps) + 1)
        return np.cumsum(histogram[:0:-1])[::-1] / total

    fpr = rate(curve.negatives, curve.negatives.sum())
    pro = rate(curve.overlap, num_regions)
    # The published code stretches the kept rates to [0, 1] instead of dividing by the limit.
    kept = fpr < FPR_LIMIT
    if kept.sum() < 2 or np.ptp(fpr[kept]) == 0:
        return float("nan")
    stretched = (fpr[kept] - fpr[kept].min()) / np.ptp(fpr[kept])
    return float(np.trapezoid(pro[kept][::-1], stretched[::-1]))


def _thresholds(low: float, high: float, form: Thresholds) -> Float[np.ndarray, " t"]:
    """Returns about 200 thresholds from `low` on, rounded as in the published code.

    The rounding matters where scores are equal to a threshold. `numpy.arange` of float32 numbers rounds the
    first two thresholds to float32 and continues with their difference in float64. `torch.arange` rounds the
    first of every eight and adds to that (those beyond the last multiple of sixteen it computes singly).
    """
    if form == "numpy":
        start, stop = np.float32(low), np.float32(high)
        rounded = (stop - start) / np.float32(NUM_STEPS)
        return np.arange(start, stop, rounded or stop - start)  # the smallest spans round to 0
    step = (high - low) / NUM_STEPS
    index = np.arange(np.ceil((high - low) / step))  # by rounding sometimes 201
    lane = np.where(index < len(index) // 16 * 16, index % 8, 0)
    first = low + step * (index - lane)
    first = np.where(index < len(index) // 16 * 16, first.astype(np.float32), first)
    return np.sort((first + step * lane).astype(np.float32))
