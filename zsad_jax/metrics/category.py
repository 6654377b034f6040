"""The metrics of one category, gathered batch by batch."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from zsad_jax.metrics import checks, streaming
from zsad_jax.metrics import exact as exact_pixels
from zsad_jax.metrics.binned import BinnedMaps
from zsad_jax.metrics.curve import curve_of
from zsad_jax.metrics.result import ALL_PIXEL_METRICS, Metrics, Note, image_metrics, undefined
from zsad_jax.metrics.stepped import Thresholds
from zsad_jax.utils.errors import UserError, agree, plural

DEFAULT_SCORE = "score"


class State(NamedTuple):
    """The images of a category so far.

    Attributes:
      scores: all image scores, by name.
      labels: True where the image is anomalous.
      pixels: the pixels of images that have a mask.
      num_maps: images with an anomaly map.
      num_with_mask: images with an anomaly map and a mask.
      num_anomalous_without_mask: anomalous images with an anomaly map and without a mask.
    """

    scores: dict[str, Float[np.ndarray, " n"]]
    labels: Bool[np.ndarray, " n"]
    pixels: exact_pixels.State | streaming.State
    num_maps: int = 0
    num_with_mask: int = 0
    num_anomalous_without_mask: int = 0


def init(*, exact: bool = False) -> State:
    """Returns the state without images.

    Args:
      exact: keep the score of every pixel, in memory that grows with the images, instead of histograms.
    """
    return State({}, np.zeros(0, bool), exact_pixels.State() if exact else streaming.init())


def update(
    state: State,
    image_scores: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike,
    maps: Float[ArrayLike, "b H W"] | BinnedMaps | None = None,
    masks: Bool[ArrayLike, "b H W"] | None = None,
    has_mask: Bool[ArrayLike, " b"] | None = None,
) -> State:
    """Adds images. Use only the returned state afterwards: histograms are changed in place.

    Args:
      state: the images so far.
      image_scores: [b], or several by name with the same names in every call; higher = more anomalous.
      labels: [b], 0 normal, 1 anomalous.
      maps: anomaly maps, not binned where every score is kept; None when only image scores are wanted.
      masks: ground truth, True where anomalous; None when no image has any.
      has_mask: which images pixel metrics may use; by default all, where masks are given.

    Raises:
      UserError: on non-finite scores, labels other than 0 and 1, or shapes that do not match.
    """
    named = image_scores if isinstance(image_scores, Mapping) else {DEFAULT_SCORE: image_scores}
    truth = checks.check_binary(labels, "Image labels", checks.IMAGE_AXES)
    checked = {name: checks.check_images(scores, truth)[0] for name, scores in named.items()}
    state = state._replace(
        scores=_append(state.scores, checked), labels=np.append(state.labels, truth)
    )
    if maps is None:
        return state
    maps = _per_image(maps, "anomaly maps", truth)
    usable = _usable(truth, masks, has_mask)
    if masks is not None:
        masks = _per_image(masks, "masks", truth)
        if not usable.all():  # otherwise no copy is needed
            maps, masks = jax.tree.map(lambda x: x[usable], (maps, masks))
        state = state._replace(pixels=_kind(state).update(state.pixels, maps, masks=masks))
    more = (len(truth), int(usable.sum()), int((truth & ~usable).sum()))
    return State(*state[:3], *map(operator.add, state[3:], more))


def merge(a: State, b: State) -> State:
    """Returns the state after both, equal to one pass over the images of both."""
    return State(
        _append(a.scores, b.scores),
        np.append(a.labels, b.labels),
        _kind(a).merge(a.pixels, b.pixels),
        *map(operator.add, a[3:], b[3:]),
    )


def compute(
    state: State, *, image_score: str | None = None, thresholds: Thresholds = "torch"
) -> Metrics:
    """Computes the seven metrics, and AUPRO as published code does.

    Args:
      state: the images.
      image_score: the name of the image score for image metrics; None: the first.
      thresholds: as for `pixel_aupro_200step`.

    Raises:
      UserError: when there is no image score of that name.
    """
    name = image_score or next(iter(state.scores), DEFAULT_SCORE)
    if state.scores and name not in state.scores:
        raise UserError(f"Unknown image score {name!r}. Available: {', '.join(state.scores)}.")
    scores = state.scores.get(name, np.zeros(0))
    image = image_metrics(curve_of(scores[~state.labels], scores[state.labels]))
    pixel = _pixel_metrics(state, thresholds)
    return Metrics(image.values | pixel.values, image.reasons | pixel.reasons, pixel.notes)


def _pixel_metrics(state: State, thresholds: Thresholds) -> Metrics:
    if not state.num_maps:
        return undefined(ALL_PIXEL_METRICS, "there are no anomaly maps")
    if not state.num_with_mask:
        return undefined(ALL_PIXEL_METRICS, "no image has a ground-truth mask")
    found: Metrics = _kind(state).compute(state.pixels, thresholds=thresholds)
    number = state.num_anomalous_without_mask
    if not number:
        return found
    reason = (
        f"{plural(number, 'anomalous image')}"
        f" {agree(number, 'has no usable mask and is', 'have no usable mask and are')}"
        f" excluded from pixel metrics ({plural(state.num_with_mask, 'image')} used)"
    )
    return found._replace(notes=(*found.notes, Note((), reason, num_without_mask=number)))


def _kind(state: State) -> Any:
    """Returns the module of this state's pixels."""
    return exact_pixels if isinstance(state.pixels, exact_pixels.State) else streaming


def _append(
    scores: dict[str, Float[np.ndarray, " n"]], more: dict[str, Float[np.ndarray, " m"]]
) -> dict[str, Float[np.ndarray, " k"]]:
    if not scores or not more:
        return scores or more
    if scores.keys() != more.keys():
        raise UserError(
            f"Image scores are named {list(more)}, but were named {list(scores)} before. Use the same names."
        )
    return {name: np.append(scores[name], more[name]) for name in scores}


def _per_image(values: ArrayLike | BinnedMaps, what: str, truth: Bool[np.ndarray, " b"]) -> Any:
    if not isinstance(values, BinnedMaps):
        values = checks.check_array(values, what.capitalize(), checks.MAP_AXES)
    checks.check_number(jax.tree.leaves(values)[0], what, truth)
    return values


def _usable(
    truth: Bool[np.ndarray, " b"], masks: ArrayLike | None, has_mask: ArrayLike | None
) -> Bool[np.ndarray, " b"]:
    if masks is None:
        return np.zeros(len(truth), bool)
    if has_mask is None:
        return np.ones(len(truth), bool)
    usable = checks.check_binary(has_mask, "Entries of has_mask", checks.IMAGE_AXES)
    checks.check_number(usable, "entries of has_mask", truth)
    return usable
