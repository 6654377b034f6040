"""Image and pixel metrics of anomaly detection, on the host: exact, or streaming in constant memory."""

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from zsad_jax.metrics import category, checks, curve, streaming
from zsad_jax.metrics.exact import pixel_aupro_200step
from zsad_jax.metrics.result import (
    AUPRO_200STEP,
    IMAGE_METRICS,
    METRICS,
    PIXEL_METRICS,
    Metrics,
    Note,
    mean_over,
)
from zsad_jax.metrics.stepped import Thresholds
from zsad_jax.utils.errors import UserError

__all__ = [
    # Metrics of arrays
    "compute",
    "undefined_reasons",
    "mean_over",
    "pixel_aupro_200step",
    "Thresholds",
    # Curves and thresholds
    "f1max_threshold",
    "roc_curve",
    # Metrics gathered batch by batch
    "category",
    "streaming",
    "Metrics",
    "Note",
    # Names
    "METRICS",
    "IMAGE_METRICS",
    "PIXEL_METRICS",
    "AUPRO_200STEP",
]


def compute(
    image_scores: ArrayLike,
    image_labels: ArrayLike,
    maps: Float[ArrayLike, "b H W"] | None = None,
    masks: Bool[ArrayLike, "b H W"] | None = None,
) -> dict[str, float]:
    """Computes the seven metrics of one category exactly.

    Args:
      image_scores: [b], higher = more anomalous.
      image_labels: [b], 0 normal, 1 anomalous.
      maps: anomaly maps, higher = more anomalous.
      masks: ground truth, True (or 1) where anomalous, all zero for normal images.

    Returns:
      image_auroc, image_ap, image_f1max, pixel_auroc, pixel_ap, pixel_aupro (8-connected regions, up to a false
      positive rate of 0.3) and pixel_f1max in [0, 1]; NaN where undefined (one class only, no maps or masks):
      `undefined_reasons` says why.

    Raises:
      UserError: on non-finite scores, labels other than 0 and 1, or shapes that do not match.

    Example:
      >>> found = compute([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      >>> found["image_auroc"], found["pixel_auroc"]
      (0.75, nan)
    """
    values = _compute(image_scores, image_labels, maps, masks).values
    return {name: values[name] for name in METRICS}


def undefined_reasons(
    image_scores: ArrayLike,
    image_labels: ArrayLike,
    maps: Float[ArrayLike, "b H W"] | None = None,
    masks: Bool[ArrayLike, "b H W"] | None = None,
) -> dict[str, str]:
    """Returns why metrics of `compute` (same arguments) are NaN; {} when none is.

    Example:
      >>> undefined_reasons([0.1, 0.4], [0, 0])["image_auroc"]
      'all images are normal'
    """
    reasons = _compute(image_scores, image_labels, maps, masks).reasons
    return {name: reason for name, reason in reasons.items() if name in METRICS}


def f1max_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Returns the highest threshold that gives the largest F1, deciding score >= threshold.

    Args:
      scores, labels: [b], as for `compute`.

    Raises:
      UserError: when no image is anomalous, or on input that `compute` rejects.

    Example:
      >>> f1max_threshold([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      0.35
    """
    checked, truth = checks.check_images(scores, labels)
    if not truth.any():
        raise UserError(
            "The threshold of the largest F1 requires at least one anomalous image. Add one."
        )
    return curve.f1max(curve.curve_of(checked[~truth], checked[truth]))[1]


def roc_curve(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Returns false and true positive rates of image scores, from (0, 0) to (1, 1).

    Args:
      scores, labels: [b], as for `compute`.

    Raises:
      UserError: when only one class is present, or on input that `compute` rejects.

    Example:
      >>> false_positives, true_positives = roc_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      >>> true_positives.tolist()
      [0.0, 0.5, 0.5, 1.0, 1.0]
    """
    checked, truth = checks.check_images(scores, labels)
    if truth.all() or not truth.any():
        raise UserError(
            "A ROC curve requires normal and anomalous images, but one class is missing. Add images of it."
        )
    return curve.roc(curve.curve_of(checked[~truth], checked[truth]))


def _compute(
    image_scores: ArrayLike,
    image_labels: ArrayLike,
    maps: ArrayLike | None,
    masks: ArrayLike | None,
) -> Metrics:
    state = category.update(category.init(exact=True), image_scores, image_labels, maps, masks)
    return category.compute(state)
