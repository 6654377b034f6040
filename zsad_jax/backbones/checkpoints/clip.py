"""CLIP files: OpenAI's, open_clip's and Hugging Face's names as tables, and what sizes the arrays show."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from zsad_jax.backbones.checkpoints import torch_layout
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.utils.errors import UserError

SIDES = ("vision", "text")
BLOCK = "transformer/encoderblock_"
HEAD_WIDTH = 64  # in every published CLIP

_OPENAI = {
    "vision": torch_layout.Layout(
        {
            "visual.conv1.weight": "embedding/kernel",
            "visual.class_embedding": "class_embedding",
            "visual.positional_embedding": "positional_embedding",
            "visual.ln_pre.weight": "ln_pre/scale",
            "visual.ln_pre.bias": "ln_pre/bias",
            "visual.ln_post.weight": "ln_post/scale",
            "visual.ln_post.bias": "ln_post/bias",
            "visual.proj": "projection",
        },
        "visual.transformer.resblocks.",
        BLOCK,
        torch_layout.OPENAI_PARTS,
    ),
    "text": torch_layout.Layout(
        {
            "token_embedding.weight": "token_embedding",
            "positional_embedding": "positional_embedding",
            "ln_final.weight": "ln_final/scale",
            "ln_final.bias": "ln_final/bias",
            "text_projection": "projection",
            "logit_scale": "logit_scale",
        },
        "transformer.resblocks.",
        BLOCK,
        torch_layout.OPENAI_PARTS,
    ),
}
_HUGGING_FACE = {
    "vision": torch_layout.Layout(
        {
            "vision_model.embeddings.patch_embedding.weight": "embedding/kernel",
            "vision_model.embeddings.class_embedding": "class_embedding",
            "vision_model.embeddings.position_embedding.weight": "positional_embedding",
            "vision_model.pre_layrnorm.weight": "ln_pre/scale",  # spelled so
            "vision_model.pre_layrnorm.bias": "ln_pre/bias",
            "vision_model.post_layernorm.weight": "ln_post/scale",
            "vision_model.post_layernorm.bias": "ln_post/bias",
            "visual_projection.weight": "projection",
        },
        "vision_model.encoder.layers.",
        BLOCK,
        torch_layout.HUGGING_FACE_PARTS,
    ),
    "text": torch_layout.Layout(
        {
            "text_model.embeddings.token_embedding.weight": "token_embedding",
            "text_model.embeddings.position_embedding.weight": "positional_embedding",
            "text_model.final_layer_norm.weight": "ln_final/scale",
            "text_model.final_layer_norm.bias": "ln_final/bias",
            "text_projection.weight": "projection",
        },
        "text_model.encoder.layers.",
        BLOCK,
        torch_layout.HUGGING_FACE_PARTS,
    ),
}
# Any of these shows the prefix of all names in a file; several, since one may be missing.
_MARKS = (
    "visual.conv1.weight",
    "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.class_embedding",
)
# A constant that is added to all logits changes no softmax over prompts; the others say what the arrays show.
_IGNORED = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "logit_bias",
    "*.position_ids",
    "*attn_mask",
)


def from_arrays(
    arrays: Arrays, *, num_heads: int | None = None, text_num_heads: int | None = None, source: str
) -> torch_layout.Native:
    """Returns the two towers of a CLIP model in native names and layouts, mostly as views of the given arrays.

    Args:
      arrays: of OpenAI's or open_clip's names ("visual.conv1.weight"), with "text." before the text side's or
        without, of Hugging Face's ("vision_model...") or native ones ("vision/..."), all with any prefix.
      num_heads: of both towers, for names that do not show it; None: one for each 64 of the width.
      text_num_heads: of the text tower, where it differs.
      source: the file or files, for errors ("The file clip.safetensors").

    Returns:
      Names begin with "vision/" and "text/". Arrays that are missing, unknown or misshapen are left for
      `fit_tree` to list.

    Raises:
      UserError: the arrays are not those of a CLIP model, or the heads do not fit them.
    """
    given = {"vision": num_heads, "text": text_num_heads or num_heads}
    if any(name.startswith(("vision/", "text/")) for name in arrays):
        file = torch_layout.Native(arrays, source)
        for side, heads in given.items():
            query = file.need(
                f"{side}/{BLOCK}0/{torch_layout.ATTENTION}/query/kernel", None, None, None
            )
            torch_layout.check_same_heads(query.shape[1], heads, f"{source} ({side} tower)")
        return file
    sides, layouts = _sort(arrays), _layouts(arrays)

    def lay_out(num_heads: Mapping[str, int]) -> torch_layout.Native:
        towers = {side: layouts[side].to_native(sides[side], num_heads[side]) for side in SIDES}
        native = {
            f"{side}/{k}": array for side, tower in towers.items() for k, array in tower.items()
        }
        return torch_layout.Native(native, source, _names_in_file(arrays, layouts), arrays)

    # With one head all is laid out that can be, whatever the width.
    file = lay_out(dict.fromkeys(SIDES, 1))
    widths = {
        "vision": len(file.need("vision/class_embedding", None)),
        "text": file.need("text/token_embedding", None, None).shape[1],
    }
    return lay_out({side: _choose_heads(given[side], widths[side], source) for side in SIDES})


def _names_in_file(
    arrays: Arrays, layouts: Mapping[str, torch_layout.Layout]
) -> Callable[[str], str]:
    """Returns a function from a native name ("vision/ln_post/bias") to that in a file of these arrays.

    The array may be missing. The name comes with its tower, which OpenAI's names do not always show.
    """
    prefix = _prefix(arrays)
    # open_clip nests the text side under "text." where it is a module of its own.
    below_text = "text." if any(name.startswith(f"{prefix}text.") for name in arrays) else ""

    def name_in_file(native: str) -> str:
        side, _, rest = native.partition("/")
        own = layouts[side].name_in_file(rest)
        if side == "text" and own != "logit_scale":
            own = below_text + own
        return f"{prefix}{own} ({side} tower)"

    return name_in_file


def _layouts(arrays: Arrays) -> dict[str, torch_layout.Layout]:
    """Returns the layouts of both sides, each as its names show it."""
    prefix = _prefix(arrays)
    marks = {"vision": (f"{prefix}vision_", f"{prefix}visual_"), "text": (f"{prefix}text_model",)}
    return {
        side: (_HUGGING_FACE if any(name.startswith(mark) for name in arrays) else _OPENAI)[side]
        for side, mark in marks.items()
    }


def _choose_heads(num_heads: int | None, width: int, source: str) -> int:
    if num_heads is None and width % HEAD_WIDTH:
        raise UserError(
            f"{source} does not show its attention heads, and its width of {width} is not a multiple of"
            f" {HEAD_WIDTH}. Pass num_heads (and text_num_heads)."
        )
    return torch_layout.check_heads(num_heads or width // HEAD_WIDTH, width, source)


def _prefix(arrays: Arrays) -> str:
    """Returns what all names begin with."""
    return next(
        (name.removesuffix(mark) for mark in _MARKS for name in arrays if name.endswith(mark)), ""
    )


def _sort(arrays: Arrays) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays by side, without what all names begin with and without those that are no weights."""
    prefix = _prefix(arrays)
    sides: dict[str, dict[str, np.ndarray]] = {side: {} for side in SIDES}
    for full_name, array in arrays.items():
        # "text_projection" is safe from the removal of open_clip's "text.": no dot follows its "text".
        name = full_name.removeprefix(prefix).removeprefix("text.")
        # OpenAI's names of the text side have nothing in common: all that is not of the vision side is of it.
        side = "vision" if name.startswith(("visual", "vision")) else "text"
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _IGNORED):
            sides[side][name] = _lay_out(name, array)
    return sides


def _lay_out(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:  # patches: [out, in, rows, columns] -> [rows, columns, in, out]
        return array.transpose(2, 3, 1, 0)
    if name == "logit_scale" and array.size == 1:
        return array.reshape(())
    # Hugging Face's projections are dense layers [out, in], OpenAI's are matrices [in, out] like ours.
    return array.T if name.endswith("_projection.weight") else array


def read_sizes(native: torch_layout.Native) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields of `clip.VisionSizes` and `clip.TextSizes` that arrays of `from_arrays` show."""
    kernel = native.need("vision/embedding/kernel", None, None, 3, None)
    positions = native.need("vision/positional_embedding", None, None)
    vocabulary, width = native.need("text/token_embedding", None, None).shape
    length = len(native.need("text/positional_embedding", None, None))
    vision, text = (
        {
            **native.block_sizes(f"{side}/{BLOCK}"),
            "embed_dim": native.need(f"{side}/projection", None, None).shape[1],
        }
        for side in SIDES
    )
    vision |= {"patch_size": kernel.shape[0], "width": kernel.shape[-1]}
    vision |= {"grid": round((len(positions) - 1) ** 0.5)}
    return vision, {**text, "vocabulary": vocabulary, "width": width, "length": length}


def to_openai(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns native parameters in OpenAI's names and layouts, the inverse of `from_arrays`.

    Args:
      params: {"vision": tree, "text": tree}; under `jax.eval_shape` the shapes come without values.
    """
    flat = flatten_dict(dict(params), sep="/")
    arrays = {
        name: flat[f"{side}/{native}"]
        for side, layout in _OPENAI.items()
        for name, native in layout.outside.items()
    }
    arrays["visual.conv1.weight"] = arrays["visual.conv1.weight"].transpose(3, 2, 0, 1)
    for side, layout in _OPENAI.items():
        tower = torch_layout.below(flat, f"{side}/{BLOCK}")
        for number in range(torch_layout.count_blocks(tower, "")):
            block = torch_layout.below(tower, f"{number}/")
            for part, targets in layout.parts.items():
                for kind, array in _openai_part(block, targets).items():
                    joint = "_" if len(targets) > 1 else "."
                    arrays[f"{layout.blocks}{number}.{part}{joint}{kind}"] = array
    return arrays


def _openai_part(block: Mapping[str, Any], targets: tuple[str, ...]) -> dict[str, Any]:
    """Returns weight and bias of a part of a block; rows of several targets are joined."""
    width = block["LayerNorm_0/bias"].shape[0]

    def rows(target: str, kind: str) -> Any:
        if kind == "bias":
            return block[f"{target}/bias"].reshape(-1)
        if target.startswith("LayerNorm"):
            return block[f"{target}/scale"]
        kernel = block[f"{target}/kernel"]
        # Attention's kernels are [in, heads, k], that of its output [heads, k, out]: all become [width, width].
        return (kernel.reshape(width, -1) if kernel.ndim == 3 else kernel).T

    parts = {kind: [rows(target, kind) for target in targets] for kind in ("weight", "bias")}
    # A single part is not copied.
    return {k: jnp.concatenate(v) if len(v) > 1 else v[0] for k, v in parts.items()}
