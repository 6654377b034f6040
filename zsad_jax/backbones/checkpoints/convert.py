"""Conversion of a PyTorch archive of a CLIP model to a file that `load_backbone` reads, without PyTorch."""

import pathlib
from collections.abc import Mapping

import numpy as np

from zsad_jax.backbones import clip
from zsad_jax.backbones.checkpoints import clip as clip_checkpoints
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.backbones.transformer import tree_of
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError

SUFFIXES = (".safetensors", ".npz")


def convert_clip(source: pathlib.Path, target: pathlib.Path) -> None:
    """Converts a CLIP model to OpenAI's names; the types of the arrays are kept.

    Args:
      source: OpenAI's archive (TorchScript), or a state dict in OpenAI's, open_clip's or Hugging Face's names.
      target: the file that is written, safetensors or npz.

    Raises:
      UserError: the source is not a readable archive of a CLIP model, or the target has another suffix.
    """
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target} has an unknown suffix. Choose {' or '.join(SUFFIXES)}.")
    if target.resolve() == source.resolve():
        raise UserError(f"{source} would overwrite itself. Name another file to write.")
    arrays = to_openai_names(read_arrays(source, keep_types=True), source)
    with files.replaced(target) as temporary:
        if target.suffix == ".npz":
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a flag by keyword
        else:
            from safetensors.numpy import save_file

            save_file(arrays, temporary)


def to_openai_names(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a CLIP model in OpenAI's names, after a check of all names and shapes."""
    source = f"The file {path}"
    # The names do not depend on the number of heads, and a single head fits any width.
    native = clip_checkpoints.from_arrays(arrays, num_heads=1, source=source)
    vision, text = clip_checkpoints.read_sizes(native)
    towers = (
        clip.VisionEncoder(clip.VisionSizes(**vision)),
        clip.TextEncoder(clip.TextSizes(**text)),
    )
    native.fit({"vision": tree_of(towers[0]), "text": tree_of(towers[1])})
    named = clip_checkpoints.to_openai(native.arrays)
    return {name: np.asarray(array, order="C") for name, array in named.items()}
