"""Checks of the input of metrics, against values that give numbers without a meaning."""

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from zsad_jax.utils.errors import UserError


def check_scores(scores: ArrayLike, what: str) -> Float[np.ndarray, "..."]:
    """Returns finite scores as float32 or float64."""
    array = np.asarray(scores)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        bad = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
        raise UserError(
            f"{what} must be finite, but entry {bad} has NaN or infinity. Check for a broken input image or an"
            " overflow in the model."
        )
    return array


def check_binary(values: ArrayLike, what: str) -> Bool[np.ndarray, "..."]:
    """Returns ground truth of zeros and ones as booleans."""
    array = np.asarray(values)
    if array.dtype == bool:
        return array
    if not ((array == 0) | (array == 1)).all():
        raise UserError(
            f"{what} must be 0 (normal) or 1 (anomalous), but range from {array.min()} to {array.max()}."
            " Convert them first."
        )
    return array.astype(bool)


def check_images(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[Float[np.ndarray, " b"], Bool[np.ndarray, " b"]]:
    """Returns image scores and labels of the same length."""
    scores, labels = check_scores(scores, "Image scores"), check_binary(labels, "Image labels")
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise UserError(
            f"Image scores and labels have the shapes {scores.shape} and {labels.shape}; expected the same"
            " length."
        )
    return scores, labels


def check_maps(
    maps: ArrayLike, masks: ArrayLike
) -> tuple[Float[np.ndarray, "b H W"], Bool[np.ndarray, "b H W"]]:
    """Returns anomaly maps and masks of the same shape."""
    maps, masks = check_scores(maps, "Anomaly maps"), check_binary(masks, "Masks")
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise UserError(
            f"Anomaly maps and masks have the shapes {maps.shape} and {masks.shape}; expected the same"
            " [images, height, width]. Resize one to the other."
        )
    return maps, masks
