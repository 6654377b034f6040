"""Files of learned prompts: which are used, where they are from, and reading and writing them."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.checkpoints.read import MisfitError, fit_tree, read_arrays
from zsad_jax.backbones.registry import ASSETS, File, find_release
from zsad_jax.methods.base import Method, param_shapes
from zsad_jax.utils import files, remote
from zsad_jax.utils.errors import UserError, suggest

# The authors' repository at the commit that added the prompts (MIT license).
URL = (
    "https://raw.githubusercontent.com/AlirezaSalehy/Tipsomaly/"
    "760f055c329cee8a5e5129d534bbfd8b66e0281d/workspaces/trained_on_{}_default/vegan-arkansas/checkpoints/"
    "learnable_params_{}.pth"
)
SIZE = 67738  # of each of these files, in bytes
BACKBONE = "tips-l14-hr"  # over which they were learned, with its PyTorch files at 518 pixels
INCLUDED_AUXILIARY = "synthetic_aux"  # what the prompts of the demo backbones were learned on
MAX_BYTES = 2**28  # of learned parameters; published ones take up to a few million


class PromptRelease(NamedTuple):
    """A published file of learned prompts: what they were learned on, for how long, and its SHA-256."""

    auxiliary: str
    epoch: int
    sha256: str

    @property
    def url(self) -> str:
        return URL.format(self.auxiliary.removesuffix("_ad"), self.epoch)


RELEASES = {
    f"tipsomaly-l14-hr-{auxiliary}-epoch{epoch}": PromptRelease(auxiliary, epoch, sha256)
    for (auxiliary, epoch), sha256 in {
        ("mvtec_ad", 1): "ed32bc00b8340d4b4a85f8457356ca0c3c42a593beee9c6a0d17fe832babae62",
        ("mvtec_ad", 2): "15546df6300fe8d9e272ee6cba5844f78bf2e1579d69eaf3fdf4f4c81b7a5fbb",
        ("visa", 1): "913ca7132078ebfacbe568eb5611d8f35d5a61aa6c5fb2215db6e59f7ebaeaa0",
        ("visa", 2): "9758adc7e1303ffe991c0ab0052e26067d120b8036a864c9fd9aabc8212ac055",
    }.items()
}


class PromptFile(NamedTuple):
    """A file of learned prompts: its released name or path ("": fixed prompts), and its epoch if known.

    `included_with` is the backbone in whose folder of the package it is; "" for any other file.
    """

    source: str
    epoch: int | None = None
    included_with: str = ""

    @property
    def description(self) -> str:
        """The origin of the prompts in words."""
        if self.included_with:
            return f"prompts included with {self.included_with}"
        return self.source or "fixed prompts"

    @property
    def name(self) -> str:
        """The released name, or the file's name without its folder."""
        return self.source if self.source in RELEASES else pathlib.Path(self.source).name

    @property
    def path(self) -> pathlib.Path:
        """The place of the file, which need not be downloaded yet."""
        return local_path(self.source) if self.source in RELEASES else pathlib.Path(self.source)


FIXED = PromptFile("")  # in place of a file, where no learned prompts are used


def find(source: str) -> PromptFile:
    """Returns the prompts of a released name or a path; raises `UserError` if neither is there."""
    if source in RELEASES:
        return PromptFile(source, RELEASES[source].epoch)
    source = remote.fetch(source, "The checkpoint")
    if pathlib.Path(source).is_dir():
        raise UserError(f"The checkpoint {source} is a folder. Pass the prompts.npz in it.")
    if not pathlib.Path(source).is_file():
        raise UserError(
            f"{source!r} is neither a file nor a name of released prompts. {suggest(source, RELEASES)}"
        )
    return PromptFile(source)


def choose(
    method: str,
    backbone: str,
    given: str | None = None,
    *,
    default: str | None = None,
    auxiliary: str | None = None,
    learns: bool = True,
) -> PromptFile:
    """Returns the prompts that a method uses: given, default or included ones, in this order, else `FIXED`.

    Args:
      method, backbone: their names.
      given, default: released names or files.
      auxiliary: the dataset that included prompts must have been learned on; None: any.
      learns: whether the method as configured learns anything; if not, only given prompts are used.
    """
    source = given if given is not None or not learns else default
    if source is not None:
        return find(source)
    path = ASSETS / backbone / f"{method}_prompts.npz"
    if not learns or auxiliary not in (None, INCLUDED_AUXILIARY) or not path.exists():
        return FIXED
    return PromptFile(str(path), included_with=backbone)


def local_path(name: str) -> pathlib.Path:
    """Returns the place of released prompts on this machine, whether they are there or not.

    Raises:
      UserError: unknown name.
    """
    if name not in RELEASES:
        raise UserError(f"Unknown prompts {name!r}. {suggest(name, RELEASES)}")
    return files.home() / "weights" / "prompts" / f"{name}.pth"


def locate(name: str) -> pathlib.Path:
    """Returns the file of released prompts, which is downloaded on first use.

    Raises:
      UserError: unknown name, or the download fails.
    """
    path = local_path(name)
    release = RELEASES[name]
    places = [(path, release.url)]
    return File(f"the prompts {name}", places, size=SIZE, sha256=release.sha256).obtain()


def save(path: files.PathLike, params: PyTree) -> None:
    """Writes a parameter tree as an npz file whose array names are the tree's paths."""
    arrays = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    if wrong := [name for name, array in arrays.items() if array.dtype == object]:
        raise TypeError(f"{wrong[0]} is not an array: parameters are nested dicts of arrays.")
    with files.replaced(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a flag by keyword


def load(file: PromptFile, method: Method, backbone: Backbone) -> PyTree:
    """Reads learned parameters and checks them against the method.

    Args:
      file: released prompts (downloaded on first use), the authors' PyTorch file, or an npz or safetensors
        file with the names of theirs or of `save`.
      method: the method that uses them.
      backbone: its backbone.

    Raises:
      UserError: the file is missing, unreadable, or does not fit.
    """
    wanted, source, name = param_shapes(method, backbone), file.source, backbone.name
    same_family = backbone.family == find_release(BACKBONE).family
    # A model that is given as files has the name of its family.
    if source in RELEASES and not (same_family and name in (BACKBONE, backbone.family)):
        logging.warning(
            "The prompts %s were learned over %s, not %s. Scores may be unreliable.",
            source,
            BACKBONE,
            name,
        )
    arrays: PyTree = read_state(source)
    try:
        # Files of `save` have our names, whatever the config; `fit_tree` reports what does not fit.
        if method.import_params is not None and not set(arrays) & set(
            flatten_dict(wanted, sep="/")
        ):
            arrays = _import(method, arrays)
        return fit_tree(arrays, wanted, source=source)
    except UserError as error:
        what = "The " + "prompts " * (not file.included_with) + file.description
        misfit = f"{what} do not fit {method.name} over {name}"
        if not isinstance(error, MisfitError):
            raise UserError(f"{misfit}. {error}") from error
        raise UserError(
            f"{misfit} with these options ({error.problems}). Train prompts with these options, or restore the"
            " options of the training."
        ) from error


def read_state(source: files.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of learned parameters by name; names of nested ones are joined by ".".

    `source` is a released name or a path, see `load` and `read_arrays`.

    Raises:
      UserError: nothing of that name, or a file that cannot be read.
    """
    path, name = pathlib.Path(remote.fetch(source)), os.fspath(source)
    if name in RELEASES:
        path = locate(name)
    elif not path.suffix:
        find(name)
    return read_arrays(path, max_bytes=MAX_BYTES)


def digest(params: PyTree) -> str:
    """Returns the SHA-256 of names, shapes and values."""
    sha = hashlib.sha256()
    for name, value in sorted(flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(value)
        sha.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
    return sha.hexdigest()


def _import(method: Method, state: Mapping[str, np.ndarray]) -> PyTree:
    assert method.import_params is not None
    try:
        return method.import_params(state)
    except UserError:
        raise
    except Exception as error:  # shapes that the arrays of the authors do not have, too
        reason = f"The arrays of the file have unexpected shapes ({error})"
        if isinstance(error, KeyError):
            found = ", ".join(sorted(state)[:10]) or "nothing"
            reason = f"The file lacks {error.args[0]!r}. It holds {found}"
        raise UserError(f"{reason}. Pass the file that training wrote.") from error
