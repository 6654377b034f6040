"""How arrays lie on the devices: batches split over one axis, weights on every device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices (None: all) along the one axis "data"; the compiler propagates shardings (Auto axes)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays' first axis over the devices, after rows of zeros up to a multiple of their number.

    Zeros make `valid` False, so that the rows added count nowhere.
    """

    def padded(array: np.ndarray) -> np.ndarray:
        missing = round_up(len(array), mesh) - len(array)
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array

    return jax.device_put(jax.tree.map(padded, tree), NamedSharding(mesh, PartitionSpec(DATA)))


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch size that the mesh can split and that holds `batch_size` rows."""
    return -(-batch_size // mesh.size) * mesh.size


def to_host(tree: Any) -> Any:
    """Leaves as numpy arrays."""
    return jax.tree.map(np.asarray, tree)
