"""The per-region overlap as published implementations compute it, for tables beside the papers' own."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Num

from zsad_jax.metrics import checks
from zsad_jax.metrics.regions import region_overlap

NUM_STEPS = 200
FPR_LIMIT = 0.3
Thresholds = Literal["torch", "numpy"]  # whose `arange` the published code calls


def pixel_aupro_200step(
    maps: Float[np.ndarray, "b H W"],
    masks: Bool[np.ndarray, "b H W"],
    *,
    thresholds: Thresholds = "torch",
) -> float:
    """AUPRO over 200 equally spaced thresholds, as in the code behind the published numbers.

    It differs from the exact value: it neither starts at (0, 0) nor interpolates at the FPR limit, it
    stretches the kept false positive rates to [0, 1], and it depends on the scale of the scores.

    Args:
      maps: anomaly maps of one category, finite.
      masks: ground truth, True (or 1) where anomalous.
      thresholds: "torch" places them as TIPSomaly's code does, "numpy" as the code of AnomalyCLIP, FAPrompt
        and TPS does; results differ by about 1e-5.

    Returns:
      A value in [0, 1]; NaN where that code fails (constant maps, fewer than two thresholds below the
      limit, all of one false positive rate) and where only one class of pixels is present.

    Raises:
      UserError: on maps that are not finite, or shapes that do not match.
    """
    maps, masks = checks.check_maps(maps, masks)
    negatives = maps[~masks]
    regions = [region_overlap(mask) for mask in masks]
    overlap = np.concatenate([weights for weights, _ in regions] or [np.zeros(0)])
    positives = np.concatenate(
        [image[mask] for image, mask in zip(maps, masks, strict=True)] or [negatives]
    )
    return stepped_aupro(
        np.concatenate([negatives, positives]),
        np.repeat([1.0, 0.0], [len(negatives), len(positives)]),
        overlap=np.concatenate([np.zeros(len(negatives)), overlap]),
        num_regions=sum(count for _, count in regions),
        span=(maps.min(), maps.max()) if maps.size else (0.0, 0.0),
        thresholds=thresholds,
    )


def stepped_aupro(
    scores: Float[np.ndarray, " n"],
    negatives: Num[np.ndarray, " n"],
    *,
    overlap: Float[np.ndarray, " n"],
    num_regions: int,
    span: tuple[float, float],
    thresholds: Thresholds,
) -> float:
    """`pixel_aupro_200step` from counted scores.

    Args:
      scores: scores in any order, repeated or not.
      negatives: normal pixels at each score.
      overlap: sum of 1 / |region| over the anomalous pixels at each score.
      num_regions: number of anomalous regions.
      span: smallest and largest value of the maps.
      thresholds: as for `pixel_aupro_200step`.
    """
    low, high = float(np.float32(span[0])), float(np.float32(span[1]))
    if not (num_regions and negatives.any() and low < high):
        return float("nan")
    steps = _thresholds(low, high, thresholds)
    passed = np.searchsorted(steps, scores.astype(np.float32))  # how many thresholds lie below

    def rate(counts: Num[np.ndarray, " n"], total: float) -> Float[np.ndarray, " t"]:
        """The share of `counts` above each threshold."""
        histogram = np.bincount(passed, counts, minlength=len(steps) + 1)
        return np.cumsum(histogram[:0:-1])[::-1] / total

    fpr, pro = rate(negatives, negatives.sum()), rate(overlap, num_regions)
    kept = fpr < FPR_LIMIT
    if kept.sum() < 2 or np.ptp(fpr[kept]) == 0:
        return float("nan")
    return float(
        np.trapezoid(pro[kept][::-1], (fpr[kept][::-1] - fpr[kept].min()) / np.ptp(fpr[kept]))
    )


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
