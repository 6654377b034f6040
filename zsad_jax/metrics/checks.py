"""Checks of the input of metrics, against values that give numbers without a meaning."""

from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from zsad_jax.metrics.binned import BinnedMaps, to_scores
from zsad_jax.utils.arrays import is_real, to_numpy
from zsad_jax.utils.errors import UserError, plural

IMAGE_AXES = ("images",)
MAP_AXES = ("images", "height", "width")
FLOATS = (np.float32, np.float64)


def check_array(values: Any, what: str, axes: tuple[str, ...]) -> np.ndarray:
    """Returns values as an array with these axes."""
    array = to_numpy(values, what)
    if array.ndim == len(axes):
        return array
    surplus = array.ndim > len(axes) and 1 in array.shape[1:]
    remedy = "Drop the axis of length 1" if surplus else "Pass one entry per image"
    raise UserError(f"{what} have the shape {array.shape}; expected [{', '.join(axes)}]. {remedy}.")


def check_scores(
    scores: Any, what: str, axes: tuple[str, ...], types: tuple[type, ...] = FLOATS
) -> Float[np.ndarray, "..."]:
    """Returns finite scores; those that have none of the given types are converted to the last one."""
    array = check_array(scores, what, axes)
    if not is_real(array.dtype):
        raise UserError(
            f"{what} must be real numbers, but have the type {array.dtype} (such as {_some(array)}). Convert"
            " them first, for example with array.astype(float)."
        )
    if array.dtype not in types:
        array = array.astype(types[-1])
    finite = np.isfinite(array)
    if not finite.all():
        raise UserError(
            f"{what} must be finite, but entry {np.argwhere(~finite)[0, 0]} has NaN or infinity. Check for a"
            " broken input image or an overflow in the model."
        )
    return array


def check_binary(values: Any, what: str, axes: tuple[str, ...]) -> Bool[np.ndarray, "..."]:
    """Returns ground truth of zeros and ones as booleans."""
    array = check_array(values, what, axes)
    if array.dtype == bool:
        return array
    valid = (array == 0) | (array == 1)
    if not valid.all():
        raise UserError(
            f"{what} must be 0 (normal) or 1 (anomalous), but include {_some(array[~valid])}. Compare them with"
            " the value that means anomalous, and pass them after the scores."
        )
    return array.astype(bool)


def check_images(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[Float[np.ndarray, " b"], Bool[np.ndarray, " b"]]:
    """Returns image scores and labels of the same length."""
    checked = check_scores(scores, "Image scores", IMAGE_AXES)
    truth = check_binary(labels, "Image labels", IMAGE_AXES)
    check_number(checked, "image scores", truth)
    return checked, truth


def check_number(values: np.ndarray, what: str, truth: Bool[np.ndarray, " b"]) -> None:
    """Raises UserError unless there is a value for each label."""
    if len(values) != len(truth):
        raise UserError(
            f"There are {len(values)} {what} for {plural(len(truth), 'image label')}. Pass one per image."
        )


def check_maps(
    maps: ArrayLike | BinnedMaps, masks: ArrayLike, types: tuple[type, ...] = FLOATS
) -> tuple[Any, Bool[np.ndarray, "b H W"]]:
    """Returns anomaly maps, binned or not, and masks of the same shape."""
    if isinstance(maps, BinnedMaps):
        check_scores(to_scores(maps.starts), "Anomaly maps", ("images", "segments"))
    else:
        maps = check_scores(maps, "Anomaly maps", MAP_AXES, types)
    shape = jax.tree.leaves(maps)[0].shape
    truth = check_binary(masks, "Masks", MAP_AXES)
    if shape != truth.shape:
        raise UserError(
            f"Anomaly maps and masks have the shapes {shape} and {truth.shape}; expected the same"
            " [images, height, width]. Resize one to the other."
        )
    return maps, truth


def _some(values: np.ndarray) -> str:
    """Returns up to three different values in words."""
    return ", ".join([*dict.fromkeys(map(repr, values.ravel()[:1000].tolist()))][:3])
