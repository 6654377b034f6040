"""Pixel metrics that keep every score: exact, in memory that grows with the images."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from zsad_jax.metrics import checks
from zsad_jax.metrics.curve import Curve, curve_of
from zsad_jax.metrics.regions import region_overlap
from zsad_jax.metrics.result import Metrics, pixel_metrics
from zsad_jax.metrics.stepped import Thresholds


class State(NamedTuple):
    """All pixels seen, one array per image.

    Attributes:
      negatives: scores of the normal pixels.
      positives: scores of the anomalous pixels.
      overlap: 1 / |region| of the anomalous pixels.
      num_regions: anomalous regions seen.
    """

    negatives: tuple[Float[np.ndarray, " n"], ...]
    positives: tuple[Float[np.ndarray, " p"], ...]
    overlap: tuple[Float[np.ndarray, " p"], ...]
    num_regions: int


def init() -> State:
    """No pixel seen."""
    return State((), (), (), 0)


def update(
    state: State, maps: Float[np.ndarray, "b H W"], *, masks: Bool[np.ndarray, "b H W"]
) -> State:
    """Adds images.

    Args:
      state: what was seen before.
      maps: anomaly maps, finite.
      masks: True where anomalous.

    Raises:
      UserError: on maps that are not finite, or shapes that do not match.
    """
    maps, masks = checks.check_maps(maps, masks)
    for image, mask in zip(maps, masks, strict=True):
        overlap, count = region_overlap(mask)
        state = merge(state, State((image[~mask],), (image[mask],), (overlap,), count))
    return state


def merge(a: State, b: State) -> State:
    """The state after both."""
    return State(
        a.negatives + b.negatives,
        a.positives + b.positives,
        a.overlap + b.overlap,
        a.num_regions + b.num_regions,
    )


def curve(state: State) -> Curve:
    """The counts of every distinct score."""
    nothing = (np.zeros(0, np.float32),)
    return curve_of(
        np.concatenate(state.negatives or nothing),
        np.concatenate(state.positives or nothing),
        overlap=np.concatenate(state.overlap or nothing),
    )


def compute(state: State, *, thresholds: Thresholds = "torch") -> Metrics:
    """The pixel metrics, and AUPRO as published code computes it."""
    counted = curve(state)
    span = (counted.scores[-1], counted.scores[0]) if len(counted.scores) else (0.0, 0.0)
    return pixel_metrics(counted, num_regions=state.num_regions, span=span, thresholds=thresholds)
