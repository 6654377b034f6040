"""The metrics of one category by name, with the reasons for those that are undefined, and their mean."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from zsad_jax.metrics import curve as curves
from zsad_jax.metrics.curve import Curve
from zsad_jax.metrics.published import Thresholds, stepped_aupro

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1max")
METRICS = IMAGE_METRICS + PIXEL_METRICS
AUPRO_200STEP = "pixel_aupro_200step"


class Figures(NamedTuple):
    """Metrics and what must be said of them.

    Attributes:
      values: metric -> value in [0, 1], NaN where undefined.
      reasons: metric -> why it is undefined, in words; only those that are NaN.
      notes: further remarks and warnings, one sentence each.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()


def undefined(names: tuple[str, ...], reason: str) -> Figures:
    """Figures that are all NaN for one reason."""
    return Figures(dict.fromkeys(names, float("nan")), dict.fromkeys(names, reason))


def joined(first: Figures, second: Figures) -> Figures:
    """Figures of two kinds as one."""
    return Figures(
        first.values | second.values, first.reasons | second.reasons, first.notes + second.notes
    )


def _missing_class(curve: Curve, items: str) -> str:
    """Which class is absent, in words; empty when both are there."""
    negatives, positives = curve.negatives.any(), curve.positives.any()
    if negatives and positives:
        return ""
    return (
        f"all {items} are {'normal' if negatives else 'anomalous'}"
        if negatives or positives
        else f"no {items}"
    )


def image_figures(curve: Curve) -> Figures:
    """AUROC, AP and F1-max of image scores."""
    if reason := _missing_class(curve, "images"):
        return undefined(IMAGE_METRICS, reason)
    found = (curves.auroc(curve), curves.average_precision(curve), curves.f1max(curve)[0])
    return Figures(dict(zip(IMAGE_METRICS, found, strict=True)), {})


def pixel_figures(
    curve: Curve, *, num_regions: int, span: tuple[float, float], thresholds: Thresholds
) -> Figures:
    """AUROC, AP, AUPRO and F1-max of pixels, and AUPRO as published code computes it.

    Args:
      curve: counted pixels.
      num_regions: number of anomalous regions.
      span: smallest and largest value of the maps.
      thresholds: as for `pixel_aupro_200step`.
    """
    if reason := _missing_class(curve, "pixels with ground truth"):
        return undefined((*PIXEL_METRICS, AUPRO_200STEP), reason)
    values = {
        "pixel_auroc": curves.auroc(curve),
        "pixel_ap": curves.average_precision(curve),
        "pixel_aupro": curves.aupro(curve, num_regions),
        "pixel_f1max": curves.f1max(curve)[0],
        AUPRO_200STEP: stepped_aupro(
            curve.scores,
            curve.negatives,
            overlap=curve.overlap,
            num_regions=num_regions,
            span=span,
            thresholds=thresholds,
        ),
    }
    reasons = {}
    if np.isnan(values[AUPRO_200STEP]):
        reasons[AUPRO_200STEP] = (
            "fewer than two of the 200 thresholds tell pixels apart below FPR 0.3"
        )
    return Figures(values, reasons)


def mean_over(categories: Mapping[str, Mapping[str, float | None]]) -> Figures:
    """The plain mean over categories, metric by metric; undefined values are left out and noted.

    Args:
      categories: category -> (metric -> value); NaN and None are undefined.
    """
    names = [
        name
        for name in (*METRICS, AUPRO_200STEP)
        if any(name in row for row in categories.values())
    ]
    values, reasons = {}, {}
    without: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        column = {category: row.get(name) for category, row in categories.items()}
        defined = [value for value in column.values() if value is not None and not np.isnan(value)]
        values[name] = float(np.mean(defined)) if defined else float("nan")
        if not defined:
            reasons[name] = "undefined for every category"
        elif len(defined) < len(column):
            absent = tuple(c for c, value in column.items() if value is None or np.isnan(value))
            without.setdefault(absent, []).append(name)
    notes = tuple(
        f"{', '.join(metrics)}: mean over {len(categories) - len(absent)} of {len(categories)} categories,"
        f" undefined for {', '.join(absent)}."
        for absent, metrics in without.items()
    )
    return Figures(values, reasons, notes)
