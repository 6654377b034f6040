"""CLIP files: OpenAI's, open_clip's and Hugging Face's names as tables, and what sizes the arrays show."""

import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.checkpoints.torch_layout import (
    ATTENTION,
    HUGGING_FACE_PARTS,
    OPENAI_PARTS,
    below,
    check_heads,
    count_blocks,
    lay_out_block,
    name_in_block,
)
from zsad_jax.utils.errors import UserError

SIDES = ("vision", "text")
_Named = dict[str, np.ndarray]
BLOCK = "transformer/encoderblock_"
_QUERY = f"{BLOCK}0/{ATTENTION}/query/kernel"
_HIDDEN = f"{BLOCK}0/MlpBlock_0/Dense_0/kernel"
HEAD_WIDTH = 64  # in every published CLIP

# Native names of the arrays outside the blocks.
_OPENAI = {
    "visual.conv1.weight": "vision/embedding/kernel",
    "visual.class_embedding": "vision/class_embedding",
    "visual.positional_embedding": "vision/positional_embedding",
    "visual.ln_pre.weight": "vision/ln_pre/scale",
    "visual.ln_pre.bias": "vision/ln_pre/bias",
    "visual.ln_post.weight": "vision/ln_post/scale",
    "visual.ln_post.bias": "vision/ln_post/bias",
    "visual.proj": "vision/projection",
    "token_embedding.weight": "text/token_embedding",
    "positional_embedding": "text/positional_embedding",
    "ln_final.weight": "text/ln_final/scale",
    "ln_final.bias": "text/ln_final/bias",
    "text_projection": "text/projection",
    "logit_scale": "text/logit_scale",
}
_HUGGING_FACE = {
    "vision_model.embeddings.patch_embedding.weight": "vision/embedding/kernel",
    "vision_model.embeddings.class_embedding": "vision/class_embedding",
    "vision_model.embeddings.position_embedding.weight": "vision/positional_embedding",
    "vision_model.pre_layrnorm.weight": "vision/ln_pre/scale",  # spelled so
    "vision_model.pre_layrnorm.bias": "vision/ln_pre/bias",
    "vision_model.post_layernorm.weight": "vision/ln_post/scale",
    "vision_model.post_layernorm.bias": "vision/ln_post/bias",
    "visual_projection.weight": "vision/projection",
    "text_model.embeddings.token_embedding.weight": "text/token_embedding",
    "text_model.embeddings.position_embedding.weight": "text/positional_embedding",
    "text_model.final_layer_norm.weight": "text/ln_final/scale",
    "text_model.final_layer_norm.bias": "text/ln_final/bias",
    "text_projection.weight": "text/projection",
}
_NAMES = {**_OPENAI, **_HUGGING_FACE}
_BLOCKS = {
    "vision": re.compile(r"(visual\.transformer\.resblocks\.|vision_model\.encoder\.layers\.)(\d+)\."),
    "text": re.compile(r"(transformer\.resblocks\.|text_model\.encoder\.layers\.)(\d+)\."),
}  # fmt: skip
# Any of these shows the prefix of all names in a file; several, since one may be missing.
_MARKS = (
    "visual.conv1.weight",
    "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.class_embedding",
)
# The arrays that show the sizes, and their numbers of dimensions.
_TELLING = {
    "vision/embedding/kernel": 4,
    "vision/class_embedding": 1,
    "vision/positional_embedding": 2,
    "vision/projection": 2,
    "text/token_embedding": 2,
    "text/positional_embedding": 2,
    "text/projection": 2,
    **{f"{side}/{_QUERY}": 3 for side in SIDES},
    **{f"{side}/{_HIDDEN}": 2 for side in SIDES},
}
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
    arrays: Arrays,
    *,
    num_heads: int | None = None,
    text_num_heads: int | None = None,
    source: str,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the two towers of a CLIP model in native names and layouts, mostly as views of the given arrays.

    Args:
      arrays: of OpenAI's or open_clip's names ("visual.conv1.weight"), with "text." before the text side's
        or without, of Hugging Face's ("vision_model...") or native ones ("vision/...", "text/..."); a prefix
        of all names, such as "module.", is removed.
      num_heads: of both towers, for names that do not show it; None: one for each 64 of the width.
      text_num_heads: of the text tower, where it differs.
      source: the file or files, for errors ("The file clip.safetensors").

    Returns:
      {name: array} of the vision and of the text tower. What is missing, unknown or misshapen is left for
      `checkpoints.fit_tree` to list.

    Raises:
      UserError: the arrays are not those of a CLIP model, or the heads do not fit them.
    """
    heads = {"vision": num_heads, "text": text_num_heads or num_heads}
    if _is_native(arrays):
        towers = {side: below(arrays, f"{side}/") for side in heads}
        _check_telling(towers, arrays, source)
        for side, tower in towers.items():
            found = tower[_QUERY].shape[1]
            if heads[side] not in (None, found):
                raise UserError(
                    f"{source} has {found} attention heads in the {side} tower, not {heads[side]}."
                    " Omit num_heads."
                )
        return towers["vision"], towers["text"]
    sides = _sort(_without_prefixes(arrays))
    # With one head all is laid out that can be, whatever the width.
    _check_telling({side: _join(*sides[side], 1) for side in SIDES}, arrays, source)
    widths = {
        "vision": sides["vision"][0]["class_embedding"].shape[-1],
        "text": sides["text"][0]["token_embedding"].shape[-1],
    }
    vision, text = (
        _join(*sides[side], _choose_heads(heads[side], widths[side], source)) for side in SIDES
    )
    return vision, text


def names_in_file(arrays: Arrays) -> Callable[[str], str]:
    """Returns a function from a native name ("vision/ln_post/bias") to that in a file of these arrays.

    The array may be missing. The name comes with its tower, which OpenAI's names do not always show.
    """
    if _is_native(arrays):
        return str
    prefix = _prefix(arrays)
    # open_clip nests the text side under "text." where it is a module of its own.
    below_text = "text." if any(name.startswith(f"{prefix}text.") for name in arrays) else ""
    hugging_face = any(
        name.startswith((f"{prefix}vision_", f"{prefix}text_model")) for name in arrays
    )
    outside = {native: name for name, native in _OPENAI.items()}
    blocks = {"vision": "visual.transformer.resblocks", "text": "transformer.resblocks"}
    if hugging_face:
        outside |= {native: name for name, native in _HUGGING_FACE.items()}
        blocks = {side: f"{side}_model.encoder.layers" for side in SIDES}
    parts = HUGGING_FACE_PARTS if hugging_face else OPENAI_PARTS

    def name_in_file(native: str) -> str:
        side, _, rest = native.partition("/")
        own = outside.get(native, rest)
        if match := re.fullmatch(rf"{BLOCK}(\d+)/(.+)", rest):
            own = f"{blocks[side]}.{match[1]}.{name_in_block(match[2], parts)}"
        if side == "text" and own != "logit_scale":
            own = below_text + own
        return f"{prefix}{own} ({side} tower)"

    return name_in_file


def _is_native(arrays: Arrays) -> bool:
    return any(name.startswith(("vision/", "text/")) for name in arrays)


def _check_telling(towers: Mapping[str, Arrays], arrays: Arrays, source: str) -> None:
    """Raises one error if the arrays do not show the sizes of both towers."""
    known = {side: {name for name in _TELLING if name.startswith(f"{side}/")} for side in SIDES}
    found = {f"{side}/{name}": array for side in SIDES for name, array in towers[side].items()}
    absent = [side for side in SIDES if not known[side] & found.keys()]
    if absent:
        raise UserError(
            f"{source} is not a CLIP file of both towers. It has no arrays of the"
            f" {' and the '.join(absent)} tower (its first names are {', '.join(sorted(arrays)[:3])})."
            " Pass one with OpenAI's, open_clip's or Hugging Face's names."
        )
    name_in_file = names_in_file(arrays)
    wrong = [
        f"{name_in_file(name)} is {'missing' if name not in found else 'of the wrong shape'}"
        for name, dimensions in _TELLING.items()
        if name not in found or found[name].ndim != dimensions
    ]
    if wrong:
        raise UserError(
            f"{source}: cannot infer the sizes of the model ({'; '.join(wrong)}). Check that it is a complete"
            " file with OpenAI's, open_clip's or Hugging Face's names, or fetch it again."
        )


def _choose_heads(num_heads: int | None, width: int, source: str) -> int:
    if num_heads is None and width % HEAD_WIDTH:
        raise UserError(
            f"{source} does not show its attention heads, and its width of {width} is not a multiple of"
            f" {HEAD_WIDTH}. Pass num_heads (and text_num_heads)."
        )
    return check_heads(num_heads or width // HEAD_WIDTH, width, source)


def _join(
    outside: Mapping[str, np.ndarray], blocks: Mapping[str, Arrays], num_heads: int
) -> dict[str, np.ndarray]:
    """Returns one tower from the arrays outside its blocks and its blocks as the file has them."""
    tower = dict(outside)
    for number, block in blocks.items():
        native = lay_out_block(block, num_heads)
        tower |= {f"{BLOCK}{number}/{name}": array for name, array in native.items()}
    return tower


def _prefix(arrays: Arrays) -> str:
    """Returns what all names begin with."""
    return next(
        (name.removesuffix(mark) for mark in _MARKS for name in arrays if name.endswith(mark)), ""
    )


def _without_prefixes(arrays: Arrays) -> dict[str, np.ndarray]:
    """Removes what all names begin with, open_clip's "text.", and arrays without weights."""
    prefix = _prefix(arrays)
    # "text_projection" is safe from the second removal: no dot follows its "text".
    shorter = {name.removeprefix(prefix).removeprefix("text."): x for name, x in arrays.items()}
    return {
        name: array
        for name, array in shorter.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _IGNORED)
    }


def _sort(arrays: Arrays) -> dict[str, tuple[_Named, dict[str, _Named]]]:
    """Returns by side: native arrays outside the blocks, and by number the blocks as the file has them."""
    sides: dict[str, tuple[_Named, dict[str, _Named]]] = {side: ({}, {}) for side in SIDES}
    for name, array in arrays.items():
        # OpenAI's names of the text side have nothing in common: all that is not of the vision side is of it.
        side = "vision" if name.startswith(("visual", "vision")) else "text"
        outside, blocks = sides[side]
        if match := _BLOCKS[side].match(name):
            blocks.setdefault(match[2], {})[name[match.end() :]] = array
        elif name in _NAMES:
            native = _NAMES[name].removeprefix(f"{side}/")
            outside[native] = _lay_out(name, native, array)
        else:
            outside[name] = array
    return sides


def _lay_out(name: str, native: str, array: np.ndarray) -> np.ndarray:
    # [out, in, rows, columns] -> [rows, columns, in, out].
    if native == "embedding/kernel" and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if native == "logit_scale" and array.size == 1:
        return array.reshape(())
    # Hugging Face's projections are dense layers [out, in], OpenAI's are matrices [in, out] like ours.
    return array.T if name.endswith("_projection.weight") else array


def read_sizes_vision(arrays: Arrays) -> dict[str, Any]:
    """Returns the fields of `clip.VisionSizes` that the native arrays of `from_arrays` show."""
    kernel = arrays["embedding/kernel"]
    return {
        "patch_size": kernel.shape[0],
        "width": kernel.shape[-1],
        **_tower_sizes(arrays),
        "grid": round((len(arrays["positional_embedding"]) - 1) ** 0.5),
    }


def read_sizes_text(arrays: Arrays) -> dict[str, Any]:
    """Returns the fields of `clip.TextSizes` that the native arrays of `from_arrays` show."""
    vocabulary, width = arrays["token_embedding"].shape
    length = len(arrays["positional_embedding"])
    return {"vocabulary": vocabulary, "width": width, **_tower_sizes(arrays), "length": length}


def _tower_sizes(arrays: Arrays) -> dict[str, int]:
    return {
        "depth": count_blocks(arrays, rf"{BLOCK}(\d+)/"),
        "num_heads": arrays[_QUERY].shape[1],
        "mlp_dim": arrays[_HIDDEN].shape[1],
        "embed_dim": arrays["projection"].shape[1],
    }


def to_openai(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns native parameters in OpenAI's names and layouts, the inverse of `from_arrays`.

    Args:
      params: {"vision": tree, "text": tree}; under `jax.eval_shape` the shapes come without values.
    """
    flat = flatten_dict(dict(params), sep="/")
    arrays = {name: flat[native] for name, native in _OPENAI.items()}
    arrays["visual.conv1.weight"] = arrays["visual.conv1.weight"].transpose(3, 2, 0, 1)
    for side, prefix in (("vision", "visual."), ("text", "")):
        tower = below(flat, f"{side}/{BLOCK}")
        for number in range(count_blocks(tower, r"(\d+)/")):
            block = below(tower, f"{number}/")
            named = f"{prefix}transformer.resblocks.{number}."
            for part, targets in OPENAI_PARTS.items():
                for kind, array in _openai_part(block, targets).items():
                    joint = "_" if len(targets) > 1 else "."
                    arrays[f"{named}{part}{joint}{kind}"] = array
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
