"""Converts a CLIP of PyTorch to safetensors (or npz) under OpenAI's names, the types of the arrays kept.

    python scripts/convert_clip.py ViT-L-14-336px.pt clip-vit-l14-336.safetensors

IN is OpenAI's archive (TorchScript, read by PyTorch), or the zip archive of a state dict under OpenAI's,
open_clip's or Hugging Face's names, which needs no PyTorch. The result loads with
`load_backbone("clip", weights=OUT)`; as <cache directory>/weights/clip/clip-vit-l14-336.safetensors it stands
for the released name.
"""

import argparse
import pathlib
import sys
import zipfile
from collections.abc import Mapping

import numpy as np

from zsad_jax.backbones import clip
from zsad_jax.backbones.checkpoints import clip as clip_checkpoints
from zsad_jax.backbones.checkpoints.read import fit_tree, read_torch_pickle
from zsad_jax.utils import command_line, files
from zsad_jax.utils.errors import UserError

SUFFIXES = (".safetensors", ".npz")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path, metavar="IN")
    parser.add_argument("target", type=pathlib.Path, metavar="OUT", help=" or ".join(SUFFIXES))
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: convert(options.source, options.target))


def convert(source: pathlib.Path, target: pathlib.Path) -> None:
    """Reads, checks and writes; prints where the result lies."""
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target} must end in {' or '.join(SUFFIXES)}.")
    write(target, to_openai_names(read(source), source))
    print(target)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a TorchScript archive or of a state dict."""
    if is_torchscript(path):
        return read_torchscript(path)
    state = read_torch_pickle(path)
    for wrapper in ("state_dict", "model"):  # as training scripts save it
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, where a state dict is expected.")
    return {name: array for name, array in state.items() if isinstance(array, np.ndarray)}


def is_torchscript(path: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[-1] == "constants.pkl" for name in archive.namelist())


def read_torchscript(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a TorchScript archive, which only PyTorch reads: pip install torch."
        ) from error
    try:
        state = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError as error:
        raise UserError(f"{path} is not a readable TorchScript archive: fetch it again.") from error
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


def to_openai_names(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """The same arrays under OpenAI's names, after all names and shapes were checked."""
    source = f"The file {path}"
    # How the heads lie makes no difference to the names: as one, they fit any width.
    vision, text = clip_checkpoints.from_arrays(arrays, num_heads=1, source=source)
    sizes = (
        clip.VisionSizes(**clip_checkpoints.read_sizes_vision(vision)),
        clip.TextSizes(**clip_checkpoints.read_sizes_text(text)),
    )
    fit_tree(vision, clip.vision_tree(sizes[0]), source=source)
    fit_tree(text, clip.text_tree(sizes[1]), source=source)
    named = clip_checkpoints.to_openai({"vision": vision, "text": text})
    return {name: np.asarray(array, order="C") for name, array in named.items()}


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with files.replaced(path) as temporary:
        if path.suffix == ".npz":
            np.savez(temporary, **arrays)
        else:
            save_file(dict(arrays), temporary)


if __name__ == "__main__":
    sys.exit(main())
