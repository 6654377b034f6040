"""Pixel metrics that keep every score: exact, in memory that grows with the images."""

import operator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from zsad_jax.metrics import checks
from zsad_jax.metrics.binned import BinnedMaps
from zsad_jax.metrics.curve import curve_of
from zsad_jax.metrics.regions import region_overlap
from zsad_jax.metrics.result import AUPRO_200STEP, Metrics, pixel_metrics
from zsad_jax.metrics.stepped import Thresholds
from zsad_jax.utils.errors import UserError


class State(NamedTuple):
    """Scores of normal and anomalous pixels and 1 / |region| of the latter, one array per image."""

    negatives: tuple[Float[np.ndarray, " n"], ...] = ()
    positives: tuple[Float[np.ndarray, " p"], ...] = ()
    overlap: tuple[Float[np.ndarray, " p"], ...] = ()
    num_regions: int = 0


def update(
    state: State, maps: Float[np.ndarray, "b H W"], *, masks: Bool[np.ndarray, "b H W"]
) -> State:
    """Adds images; arguments and errors as for `streaming.update`."""
    if isinstance(maps, BinnedMaps):
        raise UserError(
            "Exact metrics need all bits of the scores. Pass the maps that were binned."
        )
    for image, mask in zip(*checks.check_maps(maps, masks), strict=True):
        overlap, count = region_overlap(mask)
        state = merge(state, State((image[~mask],), (image[mask],), (overlap,), count))
    return state


def merge(a: State, b: State) -> State:
    """Returns the state after both."""
    return State(*map(operator.add, a, b))


def compute(state: State, *, thresholds: Thresholds = "torch") -> Metrics:
    """Computes the pixel metrics, and AUPRO as published code does."""
    negatives, positives, overlap = (
        np.concatenate(arrays or (np.zeros(0, np.float32),)) for arrays in state[:3]
    )
    counted = curve_of(negatives, positives, overlap=overlap)
    span = (counted.scores[-1], counted.scores[0]) if len(counted.scores) else (0.0, 0.0)
    return pixel_metrics(counted, num_regions=state.num_regions, span=span, thresholds=thresholds)


def pixel_aupro_200step(
    maps: Float[np.ndarray, "b H W"],
    masks: Bool[np.ndarray, "b H W"],
    *,
    thresholds: Thresholds = "torch",
) -> float:
    """Computes AUPRO over 200 equally spaced thresholds, as the code behind the published numbers does.

    Unlike the exact value, it neither starts at (0, 0) nor interpolates at the FPR limit, it stretches the kept
    false positive rates to [0, 1], and it depends on the scale of the scores.

    Args:
      maps: anomaly maps of one category, finite.
      masks: ground truth, True (or 1) where anomalous.
      thresholds: "torch" places them as TIPSomaly's code does, "numpy" as that of AnomalyCLIP, FAPrompt, TPS;
        results differ by about 1e-5.

    Returns:
      A value in [0, 1]; NaN where that code fails (constant maps, fewer than two thresholds below the limit,
      all of one false positive rate) and where only one class of pixels is present.

    Raises:
      UserError: on non-finite maps, shapes that do not match, or unknown `thresholds`.

    Example:
      >>> mask = np.zeros((1, 8, 8), bool)
      >>> mask[0, 2:4, 2:4] = True
      >>> maps = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8) + mask
      >>> pixel_aupro_200step(maps, mask)
      1.0
    """
    return compute(update(State(), maps, masks=masks), thresholds=thresholds).values[AUPRO_200STEP]
