"""Placement of arrays on devices: batches split over one axis, weights on every device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"
MAX_BATCH = 2**16


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of devices (None = all) with one axis, "data", and automatic propagation of shardings."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every leaf to every device."""
    return jax.device_put(tree, replicated(mesh))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first axis of host arrays over devices, padded with zeros to a multiple of their number."""

    def padded(array: np.ndarray) -> np.ndarray:
        missing = round_up(len(array), mesh) - len(array)
        # Arrays of different lengths would need a second compiled program; zeros make `valid` False.
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array

    return jax.device_put(jax.tree.map(padded, tree), NamedSharding(mesh, PartitionSpec(DATA)))


def constrain_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first axis over devices, in a compiled function."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(DATA)))


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Returns the smallest multiple of the number of devices that holds `batch_size` rows."""
    return -(-batch_size // mesh.size) * mesh.size


def to_host(tree: Any) -> Any:
    """Copies every leaf to a numpy array."""
    return jax.tree.map(np.asarray, tree)
