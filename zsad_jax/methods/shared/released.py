"""Published learned prompts by name, and prompts from files."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from zsad_jax.backbones.checkpoints.read import flatten, read_arrays, read_torch_pickle
from zsad_jax.utils import downloads, files
from zsad_jax.utils.errors import UserError

# The authors' repository at the commit that added the prompts (MIT licence).
BASE_URL = (
    "https://raw.githubusercontent.com/AlirezaSalehy/Tipsomaly"
    "/760f055c329cee8a5e5129d534bbfd8b66e0281d/workspaces"
)
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")


class PublishedPrompts(NamedTuple):
    """A published file of learned prompts."""

    url: str
    size: int
    sha256: str


def _published(folder: str, epoch: int, sha256: str) -> PublishedPrompts:
    path = f"{folder}/vegan-arkansas/checkpoints/learnable_params_{epoch}.pth"
    return PublishedPrompts(f"{BASE_URL}/{path}", 67738, sha256)


BACKBONE = "tips-l14-hr"
# Trained with its PyTorch files at 518 pixels on the test split of the set in the name.
PUBLISHED = {
    "tipsomaly-l14-hr-mvtec_ad-epoch1": _published(
        "trained_on_mvtec_default",
        1,
        "ed32bc00b8340d4b4a85f8457356ca0c3c42a593beee9c6a0d17fe832babae62",
    ),
    "tipsomaly-l14-hr-mvtec_ad-epoch2": _published(
        "trained_on_mvtec_default",
        2,
        "15546df6300fe8d9e272ee6cba5844f78bf2e1579d69eaf3fdf4f4c81b7a5fbb",
    ),
    "tipsomaly-l14-hr-visa-epoch1": _published(
        "trained_on_visa_default",
        1,
        "913ca7132078ebfacbe568eb5611d8f35d5a61aa6c5fb2215db6e59f7ebaeaa0",
    ),
    "tipsomaly-l14-hr-visa-epoch2": _published(
        "trained_on_visa_default",
        2,
        "9758adc7e1303ffe991c0ab0052e26067d120b8036a864c9fd9aabc8212ac055",
    ),
}


def names() -> list[str]:
    """All names that `locate` knows."""
    return list(PUBLISHED)


def locate(name: str) -> pathlib.Path:
    """Says where published prompts lie; they are fetched on first use.

    Raises:
      UserError: unknown name, or a file that cannot be fetched.
    """
    path = local_path(name)
    published = PUBLISHED[name]
    return downloads.fetch(
        published.url,
        path,
        label=f"the prompts {name}",
        instructions=f"fetch them by other means and put them at {path}",
        size=published.size,
        sha256=published.sha256,
    )


def local_path(name: str) -> pathlib.Path:
    """The place of published prompts on this machine, whether they are there or not."""
    if name not in PUBLISHED:
        raise UserError(f"{name!r} are no published prompts; known are {', '.join(PUBLISHED)}.")
    return files.home() / "weights" / "prompts" / f"{name}.pth"


def missing_files(name: str) -> list[pathlib.Path]:
    """The file of published prompts, if it is not here yet and would be fetched."""
    path = local_path(name)
    return [] if path.exists() else [path]


def fetch_command(name: str) -> str:
    """The command that fetches published prompts."""
    return f"python scripts/download_weights.py {name}"


def read_state(path_or_name: files.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays of a file of learned parameters, the authors' or a copy of it.

    Args:
      path_or_name: a published name ("tipsomaly-l14-hr-visa-epoch2", fetched on first use), an npz, or
        a PyTorch file as the authors' code writes them (read without running anything in it).

    Returns:
      Arrays by name; what is nested in a PyTorch file is joined by ".".

    Raises:
      UserError: nothing of that name, or a file that cannot be read.
    """
    path = pathlib.Path(path_or_name)
    if os.fspath(path_or_name) in PUBLISHED:
        path = locate(os.fspath(path_or_name))
    elif not path.exists() and not path.suffix:
        raise UserError(
            f"{os.fspath(path_or_name)!r} is neither a file nor published prompts; known are"
            f" {', '.join(PUBLISHED)}."
        )
    if path.suffix in TORCH_SUFFIXES:
        return _named(read_torch_pickle(path))
    if path.suffix == ".npz":
        return read_arrays(path)
    raise UserError(f"{path} is no prompt file: give an .npz or a .pth file.")


def _named(content: Any) -> dict[str, np.ndarray]:
    """What a PyTorch file holds, by name: a list, or a dict around one."""
    if isinstance(content, Mapping):
        content = content.get("learnable_prompts", content)
    if isinstance(content, list | tuple):
        content = {str(index): value for index, value in enumerate(content)}
    if not isinstance(content, Mapping):
        return {}
    arrays = flatten(content)
    return {name.replace("/", "."): np.asarray(array) for name, array in arrays.items()}
