"""Arrays that a user passes, in the forms of other libraries."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from zsad_jax.utils.errors import UserError


def to_numpy(values: Any, what: str) -> np.ndarray:
    """Returns an array, a tensor of PyTorch on any device, or an iterable of them as a NumPy array.

    Raises `UserError`, about `what` (a plural, "Anomaly maps"), if the entries have different shapes, a type
    that NumPy does not have, or masked values.
    """
    for one in values if isinstance(values, list | tuple) else [values]:
        if np.ma.is_masked(one):
            raise UserError(
                f"{what} have masked values. Replace them, for example with .filled(0)."
            )
    several = isinstance(values, list | tuple | Iterator)
    entries = list(values) if several else [values]
    try:
        plain = [
            np.asarray(one.detach().cpu()) if hasattr(one, "detach") else one for one in entries
        ]
        return np.asarray(plain if several else plain[0])
    except Exception as error:  # the tensor's library may raise any error
        shapes = [np.shape(one) for one in entries]
        most = max(shapes, key=shapes.count)
        for number, shape in enumerate(shapes):
            if shape != most:
                raise UserError(
                    f"{what} have different shapes: entry {number} is {shape}, others are {most}. Resize them"
                    " to the same shape."
                ) from error
        raise UserError(f"{what} are not an array ({error}). Pass a NumPy array.") from error


def is_array(value: Any) -> bool:
    """Returns whether this is an array, or a tensor of PyTorch."""
    return all(hasattr(value, name) for name in ("__array__", "ndim", "dtype"))


def is_real(dtype: npt.DTypeLike) -> bool:
    """Returns whether a type holds real numbers (floating-point, integer or boolean), bfloat16 among them."""
    return np.can_cast(dtype, np.float64, "same_kind")
