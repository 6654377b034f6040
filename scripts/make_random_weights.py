"""Checkpoint of random values with the names, shapes and formats of a released one.

    python scripts/make_random_weights.py clip-vit-l14-336 --out /some/where
    ZSAD_JAX_HOME=/some/where python -m zsad_jax.main --config ...

For running full-size models without a download. Files are written below --out with the layout of the cache
directory; existing files are kept. TIPS gets a small tokenizer trained on the prompt sentences. CLIP gets a
tokenizer only with --tokenizer; without one, it knows the words of the learned prompts only.
"""

import argparse
import math
import os
import pathlib
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from zsad_jax.backbones import clip, registry, tips
from zsad_jax.backbones.checkpoints import clip as clip_checkpoints
from zsad_jax.backbones.transformer import tree_of
from zsad_jax.utils import command_line, files
from zsad_jax.utils.errors import UserError

Shapes = dict[str, tuple[int, ...]]

STD = 0.02  # keeps the activations of all variants near unit scale
TEMPERATURE = 0.01
# Norm scales and LayerScale are multiplicative and centered at 1.
SCALE = re.compile(r"(^|[./])(scale|gamma|(norm\d?|ln_\w+)\.weight)$")
PYTORCH_GRID = 32  # position grid in the PyTorch files of TIPS v1 at high resolution


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "name",
        choices=[name for name, release in registry.RELEASES.items() if not release.demo],
        metavar="NAME",
        help="released checkpoint, such as tips-l14-hr or clip-vit-l14-336",
    )
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="cache directory to write to"
    )
    parser.add_argument(
        "--lineage", choices=registry.LINEAGES, default="native", help="file format (TIPS only)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--tokenizer", type=pathlib.Path, help="tokenizer file to copy into the cache directory"
    )
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: make(options))


def make(options: argparse.Namespace) -> None:
    """Writes the missing files of a model, and prints the paths of all its files."""
    os.environ["ZSAD_JAX_HOME"] = str(options.out)
    places = registry.places(options.name, options.lineage)
    for number, (kind, place) in enumerate(places._asdict().items()):
        if place is None:
            continue
        path = pathlib.Path(place)
        if not path.exists() and kind == "tokenizer":
            vocabulary = registry.RELEASES[options.name].text["vocabulary"]
            write_tokenizer(path, options.tokenizer, options.seed, vocabulary)
        elif not path.exists():
            shapes = shapes_of(options.name, options.lineage, kind)
            write_arrays(path, shapes, np.random.default_rng([options.seed, number]))
        if path.exists():
            print(f"{kind}={path}")


def shapes_of(name: str, lineage: str, kind: str) -> Shapes:
    """Returns the names and shapes of the arrays in a released model's file.

    Args:
      name: a released checkpoint.
      lineage: "native" or "pytorch" (TIPS only).
      kind: "vision" or "text", or "weights" for both.
    """
    release = registry.RELEASES[name]
    vision, text = release.vision, release.text
    if kind == "weights":
        return clip_shapes(vision, text)
    if lineage == "native":
        return shapes_in(
            tree_of(tips.VisionEncoder(tips.VisionSizes(**vision)))
            if kind == "vision"
            else tree_of(tips.TextEncoder(tips.TextSizes(**text)))
        )
    grid = PYTORCH_GRID if release.low_resolution_positions else vision["grid"]
    return pytorch_vision_shapes(vision, grid) if kind == "vision" else pytorch_text_shapes(text)


def clip_shapes(vision: registry.Sizes, text: registry.Sizes) -> Shapes:
    """Returns names and shapes of OpenAI's file of both towers."""
    trees = {
        "vision": tree_of(clip.VisionEncoder(clip.VisionSizes(**vision))),
        "text": tree_of(clip.TextEncoder(clip.TextSizes(**text))),
    }
    return shapes_in(jax.eval_shape(clip_checkpoints.to_openai, trees))


def pytorch_vision_shapes(sizes: registry.Sizes, grid: int) -> Shapes:
    """Returns names and shapes of a PyTorch vision file of TIPS."""
    width, hidden, patch = sizes["width"], sizes["mlp_dim"], sizes["patch_size"]
    if sizes["feed_forward"] == "swiglu":
        mlp = linear("mlp.w12.", width, 2 * hidden) | linear("mlp.w3.", hidden, width)
    else:
        mlp = linear("mlp.fc1.", width, hidden) | linear("mlp.fc2.", hidden, width)
    block = {
        **linear("attn.qkv.", width, 3 * width),
        **linear("attn.proj.", width, width),
        **mlp,
        **{f"norm{j}.{kind}": (width,) for j in (1, 2) for kind in ("weight", "bias")},
        **{f"ls{j}.gamma": (width,) for j in (1, 2)},
    }
    return {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed": (1, grid**2 + 1, width),
        "cls_token": (1, 1, width),
        "register_tokens": (1, 1, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **repeated("blocks.", block, sizes["depth"]),
        "mask_token": (1, width),  # of pre-training
    }


def pytorch_text_shapes(sizes: registry.Sizes) -> Shapes:
    """Returns names and shapes of a PyTorch text file of TIPS."""
    width, hidden = sizes["width"], sizes["mlp_dim"]
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        **linear("attn.out_proj.", width, width),
        **linear("mlp.c_fc.", width, hidden),
        **linear("mlp.c_proj.", hidden, width),
        **{f"ln_{j}.{kind}": (width,) for j in (1, 2) for kind in ("weight", "bias")},
    }
    return {
        "token_embedding.weight": (sizes["vocabulary"], width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "temperature": (),
        **repeated("transformer.resblocks.", block, sizes["depth"]),
    }


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}


def repeated(prefix: str, block: Shapes, depth: int) -> Shapes:
    return {f"{prefix}{i}.{name}": shape for i in range(depth) for name, shape in block.items()}


def shapes_in(tree: Mapping) -> Shapes:
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def write_arrays(path: pathlib.Path, shapes: Shapes, rng: np.random.Generator) -> None:
    """Writes random arrays as float16 safetensors (the format of OpenAI's CLIP) or as npz."""
    with files.replaced(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            arrays = {
                name: np.asarray(random_array(name, shape, rng), np.float16)
                for name, shape in shapes.items()
            }
            save_file(arrays, temporary)
            return
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            # Arrays are written one at a time, so that only one is in memory.
            for name, shape in shapes.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, random_array(name, shape, rng))


def random_array(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.startswith("temperature"):
        return np.full(shape, TEMPERATURE, np.float32)
    if name == "logit_scale":
        return np.full(shape, -math.log(TEMPERATURE), np.float32)
    array = rng.standard_normal(shape, np.float32) * np.float32(STD)
    if SCALE.search(name):
        array += 1
    return array


def write_tokenizer(
    path: pathlib.Path, given: pathlib.Path | None, seed: int, vocabulary: int
) -> None:
    """Copies a tokenizer, or trains one and fills it with unused tokens."""
    if given is not None and not given.is_file():
        raise UserError(
            f"The tokenizer file {given} does not exist. Pass an existing file, or omit --tokenizer."
        )
    if given is None and path.suffix != ".model":
        return
    with files.replaced(path) as temporary:
        if given is not None:
            shutil.copyfile(given, temporary)
            return
        from nano_captions import train_tokenizer
        from sentencepiece import sentencepiece_model_pb2 as proto

        model = proto.ModelProto.FromString(train_tokenizer(seed))
        unused = proto.ModelProto.SentencePiece.UNUSED
        for number in range(len(model.pieces), vocabulary):
            model.pieces.add(piece=f"<unused {number}>", type=unused)
        temporary.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    sys.exit(main())
