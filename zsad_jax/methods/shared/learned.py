"""Learned parameters as small files: written after training, read by name, path or checkpoint."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging

from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.checkpoints.read import fit_tree, flatten
from zsad_jax.backbones.registry import ASSETS
from zsad_jax.methods.base import Method, PyTree
from zsad_jax.methods.shared import released
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError

SHIPPED_AUXILIARY = "synthetic_aux"  # what the prompts that ship were learned on


def save(path: files.PathLike, params: PyTree) -> None:
    """Writes a parameter tree as an npz file whose array names are the tree's paths."""
    arrays = {name: np.asarray(value) for name, value in flatten(params).items()}
    with files.replaced(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a flag by keyword


def expected(method: Method, backbone: Backbone) -> PyTree:
    """Shapes of the method's learnable parameters."""
    return jax.eval_shape(method.init, jax.random.key(0), backbone.params)


def shipped_prompts(method: str, backbone: str) -> pathlib.Path | None:
    """The file of prompts that ships with a backbone; None where there is none."""
    path = ASSETS / backbone / f"{method}_prompts.npz"
    return path if path.exists() else None


def learns(method: Method, backbone: Backbone) -> bool:
    """Whether the method has anything to learn."""
    return bool(jax.tree.leaves(expected(method, backbone)))


def load(source: str, method: Method, backbone: Backbone) -> PyTree:
    """The learned parameters of a released name or a file, checked against the method.

    Args:
      source: a released name ("tipsomaly-l14-hr-mvtec_ad-epoch2", fetched on first use), the authors'
        `.pth`, or an npz file of theirs or of `save`.
      method: what they are for.
      backbone: what the method runs over.

    Raises:
      UserError: the file is missing, unreadable, or does not fit.
    """
    wanted = expected(method, backbone)
    made_for = released.BACKBONE
    if source in released.names() and backbone.name not in (made_for, "tips"):
        logging.warning(
            "The prompts %s were learned over %s, not %s.", source, made_for, backbone.name
        )
    arrays: PyTree = released.read_state(source)
    try:
        # Names of ours are a file of `save`, if of another config: what does not fit is told below.
        if method.import_params is not None and not set(arrays) & set(flatten(wanted)):
            arrays = _import(method, arrays)
        return fit_tree(arrays, wanted, source=source)
    except UserError as error:
        raise UserError(
            f"The learned prompts {source} do not fit {method.name} over {backbone.name}: {error}"
        ) from error


def _import(method: Method, state: Mapping[str, np.ndarray]) -> PyTree:
    assert method.import_params is not None
    try:
        return method.import_params(state)
    except KeyError as error:
        found = ", ".join(sorted(state)[:10]) or "nothing"
        raise UserError(
            f"it lacks {error.args[0]!r} and holds {found}; give the file that training wrote."
        ) from error


def digest(params: PyTree) -> str:
    """SHA-256 over names, shapes and values."""
    import hashlib

    sha = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        array = np.ascontiguousarray(value)
        sha.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
    return sha.hexdigest()
