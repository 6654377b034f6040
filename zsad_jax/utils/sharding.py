"""Placement of arrays on the devices of one process or several: batches split, weights on every device.

In a run of several processes, each has the same host arrays, except for batches: there it has its own rows.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zsad_jax.utils.errors import UserError

DATA, MODEL = "data", "model"
MAX_BATCH = 2**16


def make_mesh(devices: Sequence[jax.Device] | None = None, model: int = 1) -> Mesh:
    """Returns a mesh of devices (None = all) with automatic propagation of shardings.

    Its axes are "data", over which batches are split, and "model", over `model` devices of a process.

    Raises:
      UserError: `model` does not divide the number of devices of a process.
    """
    # Sorted, so that the rows of a process are neighbors. Only gradients of few parameters are summed over
    # "data", so the topology of the network hardly matters.
    ordered = sorted(devices or jax.devices(), key=lambda one: (one.process_index, one.id))
    local = sum(one.process_index == ordered[0].process_index for one in ordered)
    if local % model:
        raise UserError(
            f"model_devices={model} does not divide {local}, the number of devices of a process. Use a divisor."
        )
    return Mesh(np.reshape(ordered, (-1, model)), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is split over "data"."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Copies every leaf to the devices of a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        # Unlike `device_put`, this does not send every array to all processes for a comparison.
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(put, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every leaf to every device."""
    return place(tree, replicated(mesh))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first axis of host arrays, this process's rows (see `own_rows`), over "data".

    They are padded with zeros to a multiple of the number of its devices.
    """
    devices = mesh.local_mesh.shape[DATA]

    def put(array: np.ndarray) -> jax.Array:
        missing = -len(array) % devices
        # Arrays of different lengths would need a second compiled program; zeros make `valid` False.
        padded = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array
        return jax.make_array_from_process_local_data(over_data(mesh), padded)

    return jax.tree.map(put, tree)


def own_rows(rows: int, mesh: Mesh) -> slice:
    """Returns the slice of a batch's rows that this process loads.

    `rows`, their number, is a multiple of the size of "data".
    """
    own = [one.process_index == jax.process_index() for one in mesh.devices[:, 0]]
    per_device = rows // len(own)
    first = own.index(True) * per_device
    return slice(first, first + sum(own) * per_device)


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Returns the smallest multiple of the size of "data" that holds `batch_size` rows."""
    return -(-batch_size // mesh.shape[DATA]) * mesh.shape[DATA]


def to_host(tree: Any) -> Any:
    """Copies every leaf to a numpy array: this process's rows of an array that is split over "data"."""
    from jax.experimental.multihost_utils import global_array_to_host_local_array

    def copy(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            named: Any = x.sharding
            x = global_array_to_host_local_array(x, named.mesh, named.spec)
        return np.asarray(x)

    return jax.tree.map(copy, tree)
