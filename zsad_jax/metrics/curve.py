"""Ranking metrics from the numbers of normal and anomalous items at each distinct score."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FPR_LIMIT = 0.3  # of AUPRO


class Curve(NamedTuple):
    """Counts at each distinct score, highest score first; ties share one entry.

    Attributes:
      scores: distinct scores, descending.
      negatives: normal items (images or pixels) with that score.
      positives: anomalous items with that score.
      overlap: sum of 1 / |region| over the anomalous pixels with that score. Divided by the number of
        regions, its cumulative sum is the per-region overlap (PRO).
    """

    scores: Float[np.ndarray, " n"]
    negatives: Int[np.ndarray, " n"]
    positives: Int[np.ndarray, " n"]
    overlap: Float[np.ndarray, " n"]

    @property
    def classes(self) -> tuple[bool, bool]:
        """Whether there are normal items, and whether there are anomalous ones."""
        return bool(self.negatives.any()), bool(self.positives.any())


def curve_of(
    negatives: Float[np.ndarray, " n"],
    positives: Float[np.ndarray, " p"],
    *,
    overlap: Float[np.ndarray, " p"] | None = None,
) -> Curve:
    """Counts equal scores.

    Args:
      negatives: scores of the normal items, in any order.
      positives: scores of the anomalous items.
      overlap: 1 / |region| of each anomalous item; zeros where regions do not matter.
    """
    if overlap is None:
        overlap = np.zeros(len(positives))
    # Normal and anomalous items are sorted apart, since a joint sort needs a label beside every pixel.
    normal, num_normal = np.unique(negatives, return_counts=True)
    anomalous, place, num_anomalous = np.unique(positives, return_inverse=True, return_counts=True)
    scores = np.union1d(normal, anomalous)
    counts = np.zeros((2, len(scores)), np.int64)
    counts[0, np.searchsorted(scores, normal)] = num_normal
    at = np.searchsorted(scores, anomalous)
    counts[1, at] = num_anomalous
    weights = np.zeros(len(scores))
    weights[at] = np.bincount(place, overlap, minlength=len(anomalous))
    return Curve(scores[::-1], counts[0, ::-1], counts[1, ::-1], weights[::-1])


def auroc(curve: Curve) -> float:
    """Computes the area under the ROC curve: P(s⁺ > s⁻) + P(s⁺ = s⁻) / 2 over pairs of items."""
    total = curve.negatives.sum()
    outranked = total - np.cumsum(curve.negatives) + curve.negatives / 2
    return float(np.dot(curve.positives, outranked) / total / curve.positives.sum())


def average_precision(curve: Curve) -> float:
    """Computes Σₖ (Rₖ − Rₖ₋₁) Pₖ over distinct scores, without interpolation (as scikit-learn does)."""
    true = np.cumsum(curve.positives)
    precision = true / (true + np.cumsum(curve.negatives))
    return float(np.dot(curve.positives, precision) / true[-1])


def f1max(curve: Curve) -> tuple[float, float]:
    """Returns the largest F1 = 2 TP / (2 TP + FP + FN) over all thresholds, and the highest such threshold.

    An item is predicted anomalous if its score >= threshold.
    """
    true = np.cumsum(curve.positives)
    f1 = 2 * true / (true + np.cumsum(curve.negatives) + true[-1])  # 2 TP + FP + FN = TP + FP + P
    best = int(np.argmax(f1))
    return float(f1[best]), float(curve.scores[best])


def roc(curve: Curve) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Returns false and true positive rates from (0, 0) to (1, 1)."""
    false, true = (np.append(0, np.cumsum(counts)) for counts in (curve.negatives, curve.positives))
    return false / false[-1], true / true[-1]


def aupro(curve: Curve, num_regions: int) -> float:
    """Computes the normalized area under the per-region overlap, AUPRO = (1/L) ∫₀ᴸ PRO d FPR.

    PRO(t) is the mean over regions r of |r ∩ {s >= t}| / |r|, FPR(t) the share of normal pixels with s >= t,
    and L the limit. The curve starts at (0, 0) and is cut at L by linear interpolation (Bergmann et al.
    2021, "The MVTec Anomaly Detection Dataset", section 5).

    Args:
      curve: pixel counts with `overlap`.
      num_regions: number of anomalous regions over all images.
    """
    fpr = np.append(0, np.cumsum(curve.negatives)) / curve.negatives.sum()
    pro = np.append(0, np.cumsum(curve.overlap)) / num_regions
    end = int(np.searchsorted(fpr, FPR_LIMIT, side="right"))  # the first point beyond the limit
    share = (FPR_LIMIT - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
    last = pro[end - 1] + share * (pro[end] - pro[end - 1])
    area = np.trapezoid(np.append(pro[:end], last), np.append(fpr[:end], FPR_LIMIT))
    return float(min(area / FPR_LIMIT, 1.0))  # sums of 1 / |region| may exceed 1 by rounding
