"""The metrics of one category by name, remarks on them, and their mean over categories."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from zsad_jax.metrics import curve as curves
from zsad_jax.metrics.curve import Curve
from zsad_jax.metrics.stepped import THRESHOLDS, Thresholds, stepped_aupro
from zsad_jax.utils.errors import UserError, suggest

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1max")
METRICS = IMAGE_METRICS + PIXEL_METRICS
AUPRO_200STEP = "pixel_aupro_200step"
ALL_PIXEL_METRICS = (*PIXEL_METRICS, AUPRO_200STEP)


class Note(NamedTuple):
    """A remark on metrics.

    Attributes:
      metrics: which metrics; () for a remark that names them itself.
      reason: why they are undefined or doubtful, without a full stop.
      num_without_mask: anomalous images that pixel metrics exclude because they have no mask.
    """

    metrics: tuple[str, ...]
    reason: str
    num_without_mask: int = 0


class Metrics(NamedTuple):
    """Metrics with remarks.

    Attributes:
      values: metric -> value in [0, 1], NaN where undefined.
      reasons: metric -> why it is undefined; only metrics that are NaN.
      notes: further remarks and warnings.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    notes: tuple[Note, ...] = ()


def undefined(names: tuple[str, ...], reason: str) -> Metrics:
    """Returns metrics that are all NaN for one reason."""
    return Metrics(dict.fromkeys(names, float("nan")), dict.fromkeys(names, reason))


def image_metrics(curve: Curve) -> Metrics:
    """Computes AUROC, AP and F1-max of image scores."""
    if reason := missing_class(*curve.classes, "images"):
        return undefined(IMAGE_METRICS, reason)
    found = (curves.auroc(curve), curves.average_precision(curve), curves.f1max(curve)[0])
    return Metrics(dict(zip(IMAGE_METRICS, found, strict=True)), {})


def pixel_metrics(
    curve: Curve, *, num_regions: int, span: tuple[float, float], thresholds: Thresholds
) -> Metrics:
    """Computes AUROC, AP, AUPRO and F1-max of pixels, and AUPRO as published code computes it.

    Args:
      curve: counted pixels.
      num_regions: number of anomalous regions.
      span: smallest and largest value of the maps.
      thresholds: as for `pixel_aupro_200step`.

    Raises:
      UserError: the thresholds are unknown.
    """
    if thresholds not in THRESHOLDS:
        raise UserError(
            f"thresholds={thresholds!r} is unknown. {suggest(str(thresholds), THRESHOLDS)}"
        )
    if reason := missing_class(*curve.classes, "pixels with ground truth"):
        return undefined(ALL_PIXEL_METRICS, reason)
    values = {
        "pixel_auroc": curves.auroc(curve),
        "pixel_ap": curves.average_precision(curve),
        "pixel_aupro": curves.aupro(curve, num_regions),
        "pixel_f1max": curves.f1max(curve)[0],
        AUPRO_200STEP: stepped_aupro(curve, num_regions, span=span, thresholds=thresholds),
    }
    reason = "fewer than two of the 200 thresholds separate pixels below FPR 0.3"
    return Metrics(values, {AUPRO_200STEP: reason} if np.isnan(values[AUPRO_200STEP]) else {})


def mean_over(categories: Mapping[str, Mapping[str, float | None]]) -> Metrics:
    """Computes the mean over categories, metric by metric, without undefined values.

    Args:
      categories: category -> (metric -> value); NaN and None are undefined.

    Example:
      >>> mean_over({"nut": {"image_auroc": 0.5}, "bolt": {"image_auroc": 1.0}}).values
      {'image_auroc': 0.75}
    """
    values, reasons = {}, {}
    for name in (*METRICS, AUPRO_200STEP):
        column = [row[name] for row in categories.values() if name in row]
        defined = [value for value in column if value is not None and not np.isnan(value)]
        if column:
            values[name] = float(np.mean(defined)) if defined else float("nan")
        if column and not defined:
            reasons[name] = "undefined for every category"
    return Metrics(values, reasons)


def missing_class(negatives: bool, positives: bool, items: str) -> str:
    """Says which class is absent, given which are present; "" when both are."""
    if negatives and positives:
        return ""
    if negatives or positives:
        return f"all {items} are {'normal' if negatives else 'anomalous'}"
    return f"no {items}"
