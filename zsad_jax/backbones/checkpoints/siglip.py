"""SigLIP files: big_vision's names and Hugging Face's."""

import functools
import math
from collections.abc import Mapping

import numpy as np

from zsad_jax.backbones.checkpoints import torch_layout, vit
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.registry import SIGLIP_TOWERS

PREFIXES = ("params/", "opt/target/")
TEXT_BLOCKS = "text/transformer/encoderblock_"
_TOKENS, _BLOCKS, _HEAD = (
    f"vision/{name}" for name in (vit.TOKENS, vit.BLOCKS, "encoder/MAPHead_")
)
# What big_vision's names begin with -> what ours begin with.
_BIG_VISION = {
    "img/embedding/": f"{_TOKENS}/embedding/",
    "img/pos_embedding": f"{_TOKENS}/posembed_input",
    "img/Transformer/encoderblock_": _BLOCKS,
    "img/Transformer/encoder_norm/": f"vision/{vit.NORM}/",
    "img/MAPHead_": _HEAD,
    "txt/Embed_0/embedding": "text/token_embedding",
    "txt/pos_embedding": "text/positional_embedding",
    "txt/Encoder_0/encoderblock_": TEXT_BLOCKS,
    "txt/Encoder_0/encoder_norm/": "text/ln_final/",
    "txt/head/": "text/head/",
    "t": "text/logit_scale",
    "b": "text/logit_bias",
}
_KERNEL = "vision_model.embeddings.patch_embedding.weight"
_TABLE = "text_model.embeddings.token_embedding.weight"
_OUTSIDE = {
    _KERNEL: f"{_TOKENS}/embedding/kernel",
    "vision_model.embeddings.patch_embedding.bias": f"{_TOKENS}/embedding/bias",
    "vision_model.embeddings.position_embedding.weight": f"{_TOKENS}/posembed_input",
    "vision_model.post_layernorm.weight": f"vision/{vit.NORM}/scale",
    "vision_model.post_layernorm.bias": f"vision/{vit.NORM}/bias",
    _TABLE: "text/token_embedding",
    "text_model.embeddings.position_embedding.weight": "text/positional_embedding",
    "text_model.final_layer_norm.weight": "text/ln_final/scale",
    "text_model.final_layer_norm.bias": "text/ln_final/bias",
    "text_model.head.weight": "text/head/kernel",
    "text_model.head.bias": "text/head/bias",
    "logit_scale": "text/logit_scale",
    "logit_bias": "text/logit_bias",
}
_PARTS = torch_layout.HUGGING_FACE_PARTS
_HEAD_PARTS = {
    "layernorm": ("LayerNorm_0",),
    "attention.in_proj": torch_layout.QUERY_KEY_VALUE,
    "attention.out_proj": _PARTS["self_attn.out_proj"],
    **{name: _PARTS[name] for name in ("mlp.fc1", "mlp.fc2")},
}
# One after the other; the MAP head is read as a block with the number 0.
_LAYOUTS = {
    "text": torch_layout.Layout({}, "text_model.encoder.layers.", TEXT_BLOCKS, _PARTS),
    "vision": torch_layout.Layout(_OUTSIDE, "vision_model.encoder.layers.", _BLOCKS, _PARTS),
    "head": torch_layout.Layout({}, "vision_model.head.", _HEAD, _HEAD_PARTS),
}
# Arrays that files have with more axes of length 1 than our tree.
_DIMENSIONS = {"text/positional_embedding": 2, "text/logit_scale": 0, "text/logit_bias": 0}


def from_arrays(
    arrays: Arrays, num_heads: int | None, text_num_heads: int | None, source: str
) -> torch_layout.Native:
    """Returns native arrays, whose names begin with "vision/" and "text/".

    Arrays that are missing, unknown or misshapen are left for `fit_tree` to list.
    """
    for prefix in PREFIXES:
        arrays = torch_layout.below(arrays, prefix) or arrays
    given = {"vision": num_heads, "text": text_num_heads or num_heads}
    if any("/" in name for name in arrays):
        native = {_rename(_BIG_VISION, name): x for name, x in _one_by_one(arrays).items()}
        names = {ours: theirs for theirs, ours in _BIG_VISION.items()}
        file = torch_layout.Native(native, source, functools.partial(_rename, names), arrays)
    else:
        native = _from_hugging_face(arrays, given, source)
        file = torch_layout.Native(native, source, _name_in_hugging_face, arrays)
    for name, dimensions in _DIMENSIONS.items():
        while name in native and native[name].ndim > dimensions and len(native[name]) == 1:
            native[name] = native[name][0]
    table = native.get(f"{_TOKENS}/posembed_input", np.empty(0))
    if table.ndim and table.size:
        rows = table.reshape(-1, table.shape[-1])
        if (grid := math.isqrt(len(rows))) ** 2 == len(rows):
            native[f"{_TOKENS}/posembed_input"] = rows.reshape(1, grid, grid, -1)
    for side, blocks in (("vision", _BLOCKS), ("text", TEXT_BLOCKS)):
        found = file.block_sizes(blocks)["num_heads"]
        torch_layout.check_same_heads(found, given[side], f"{source} ({side} tower)")
    return file


def _rename(names: Mapping[str, str], name: str) -> str:
    """Returns a name with its beginning, which ends with "/" or "_", or all of it as the table has it."""
    begins = (old for old in names if name == old or (old[-1] in "/_" and name.startswith(old)))
    old = next(begins, "")
    return names.get(old, "") + name.removeprefix(old)


def _one_by_one(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns the arrays of each block, which files of scanned towers stack."""
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        tower, stacked, part = name.partition("/encoderblock/")
        if stacked:
            blocks = enumerate(np.atleast_1d(array))
            found |= {f"{tower}/encoderblock_{i}/{part}": x for i, x in blocks}
        else:
            found[name] = array
    table, second = "txt/pos_embedding", "txt/Encoder_0/pos_embedding"  # old files have both
    if second in found and table in found and found[second].shape == found[table].shape:
        found[table] = found[table] + found.pop(second)
    return found


def _from_hugging_face(
    arrays: Arrays, num_heads: Mapping[str, int | None], source: str
) -> dict[str, np.ndarray]:
    file = torch_layout.Native(arrays, source)
    widths = {
        "vision": len(file.need(_KERNEL, None, 3, None, None)),
        "text": file.need(_TABLE, None, None).shape[1],
    }
    head = _LAYOUTS["head"].blocks
    native = {name.replace(head, f"{head}0."): array for name, array in arrays.items()}
    # [out, in, rows, columns] -> [rows, columns, in, out], and [out, in] -> [in, out].
    native[_KERNEL] = native[_KERNEL].transpose(2, 3, 1, 0)
    if (name := "text_model.head.weight") in native:
        native[name] = native[name].T
    for side, layout in _LAYOUTS.items():
        tower = "text" if side == "text" else "vision"
        width = widths[tower]
        heads = num_heads[tower] or vit.default_heads(width, SIGLIP_TOWERS)
        native = layout.to_native(native, torch_layout.check_heads(heads, width, source))
    return native


def _name_in_hugging_face(native: str) -> str:
    for layout in _LAYOUTS.values():
        native = layout.name_in_file(native)
    return native.replace(".head.0.", ".head.")
