"""TIPS files: their lineage and sizes, and the PyTorch layout."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.checkpoints.torch_layout import (
    ATTENTION,
    OPENAI_PARTS,
    TIPS_VISION_PARTS,
    Layout,
    check_heads,
    count_blocks,
)
from zsad_jax.backbones.registry import TIPS_TOWERS
from zsad_jax.utils.errors import UserError

TOKENS = "encoder/ToTokenSequence_0"
# Head counts by width, for files whose arrays do not show them (PyTorch's fused matrices).
NUM_HEADS = {tower.width: tower.num_heads for tower in TIPS_TOWERS.values()}
# LayerScale by the dense layer whose outputs it scales; the last one of a SwiGLU is w3.
LAYER_SCALES = {"attn.proj": "ls1", "mlp.fc2": "ls2", "mlp.w3": "ls2"}
_SCALED = re.compile(r"(blocks\.\d+)\.(attn\.proj|mlp\.fc2|mlp\.w3)\.(?:weight|bias)")
# Arrays that become parts of others, and the mask token of pre-training.
_MERGED = re.compile(r"mask_token|register_tokens|blocks\.\d+\.ls[12]\.gamma")

_LAYOUTS = {
    "vision": Layout(
        {
            "patch_embed.proj.weight": f"{TOKENS}/embedding/kernel",
            "patch_embed.proj.bias": f"{TOKENS}/embedding/bias",
            "pos_embed": f"{TOKENS}/posembed_input",
            "cls_token": f"{TOKENS}/cls",
            "norm.weight": "encoder/encoder_norm/scale",
            "norm.bias": "encoder/encoder_norm/bias",
        },
        "blocks.",
        "encoder/transformer/encoderblock_",
        TIPS_VISION_PARTS,
    ),
    "text": Layout(
        {
            "token_embedding.weight": "token_emb/emb_var",
            "ln_final.weight": "text_encoder_norm/scale",
            "ln_final.bias": "text_encoder_norm/bias",
            "temperature": "temperature_contrastive",  # as some files name it, too
        },
        "transformer.resblocks.",
        "transformer/encoderblock_",
        OPENAI_PARTS,
    ),
}


def is_pytorch(arrays: Arrays) -> bool:
    """Returns whether the keys are those of the PyTorch release (dots) and not of the native one (slashes)."""
    return not any("/" in name for name in arrays)


def names_in_file(arrays: Arrays, side: str) -> Callable[[str], str]:
    """Returns a function from a native name to that in a file of these arrays, which may lack the array."""
    return _LAYOUTS[side].name_in_file if is_pytorch(arrays) else str


def from_pytorch(
    arrays: Arrays, side: str, num_heads: int | None, source: str
) -> dict[str, np.ndarray]:
    """Returns a PyTorch file in native names and layouts, with LayerScale folded into dense layers.

    Arrays that are missing, unknown or misshapen are left for `fit_tree` to list.
    """
    if side == "vision":
        arrays = _lay_out_vision(arrays, source)
        width = arrays["pos_embed"].shape[-1]
    else:
        width = _need(arrays, source, "token_embedding.weight", (None, None)).shape[1]
    heads = check_heads(num_heads or default_heads(width), width, source)
    return _LAYOUTS[side].to_native(arrays, heads)


def _lay_out_vision(arrays: Arrays, source: str) -> dict[str, np.ndarray]:
    """Returns the arrays with LayerScale folded in, and with those outside the blocks in native layouts."""
    need = functools.partial(_need, arrays, source)
    count, width = need("pos_embed", (1, None, None)).shape[1:]
    # Row 0 is that of the class token; the others are those of the patches, row by row.
    grid = math.isqrt(max(count - 1, 0))
    positions = need("pos_embed", (1, grid**2 + 1, width))
    token, register = (need(name, (1, 1, width)) for name in ("cls_token", "register_tokens"))
    kernel = need("patch_embed.proj.weight", (width, 3, None, None))
    native = {
        # [out, in, rows, columns] -> [rows, columns, in, out].
        "patch_embed.proj.weight": kernel.transpose(2, 3, 1, 0),
        "pos_embed": positions[:, 1:].reshape(1, grid, grid, width),
        # Native global tokens have no positions: that of the class token is added to it once and for all.
        "cls_token": np.concatenate([token + positions[:, :1], register], axis=1),
    }
    for name, array in arrays.items():
        if match := _SCALED.fullmatch(name):
            gamma = need(f"{match[1]}.{LAYER_SCALES[match[2]]}.gamma", (width,))
            # A scale of outputs, which are the rows of PyTorch's matrices: s * (x W + b) = x (W s) + b s.
            # Whether released scales differ from 1 is not documented, so they are never assumed to be 1.
            if array.shape[:1] == gamma.shape:
                native[name] = (array.T * gamma).T
    kept = {name: array for name, array in arrays.items() if not _MERGED.fullmatch(name)}
    return kept | native


def default_heads(width: int) -> int:
    """Returns the released number of heads for a width; 64 per head where no release has that width."""
    return NUM_HEADS.get(width, max(width // 64, 1))


def _need(
    arrays: Arrays,
    source: str,
    name: str,
    shape: tuple[int | None, ...],
    name_in_file: Callable[[str], str] = str,
) -> np.ndarray:
    """Returns an array that shows sizes; None in the shape stands for any length."""
    found = arrays[name].shape if name in arrays else ()
    if len(found) != len(shape) or any(
        m == 0 or n not in (None, m) for n, m in zip(shape, found, strict=True)
    ):
        raise UserError(
            f"{source} is not a TIPS file of the expected side. It has no array {name_in_file(name)!r} of the"
            f" expected shape (its first names are {', '.join(sorted(arrays)[:3])}). Check that it is complete,"
            " and that the vision and text files are not swapped."
        )
    return arrays[name]


def read_sizes(
    arrays: Arrays, side: str, source: str, name_in_file: Callable[[str], str]
) -> dict[str, Any]:
    """Returns the fields of `VisionSizes` or `TextSizes` that native arrays show."""
    need = functools.partial(_need, arrays, source, name_in_file=name_in_file)
    blocks = _LAYOUTS[side].native_blocks
    swiglu = f"{blocks}0/FFNSwiGluFused_0/Dense_0/kernel" in arrays
    dense = f"{blocks}0/{'FFNSwiGluFused_0' if swiglu else 'MlpBlock_0'}/Dense_0/kernel"

    def read_blocks() -> dict[str, int]:
        return {
            # So400m's text tower has 27 blocks, the others 12: the file says, not the name.
            "depth": count_blocks(arrays, blocks),
            "num_heads": need(f"{blocks}0/{ATTENTION}/query/kernel", (None, None, None)).shape[1],
            "mlp_dim": need(dense, (None, None)).shape[1],
        }

    if side == "text":
        vocabulary, width = need("token_emb/emb_var", (None, None)).shape
        return {"vocabulary": vocabulary, "width": width, **read_blocks()}
    kernel = need(f"{TOKENS}/embedding/kernel", (None, None, 3, None))
    return {
        "patch_size": kernel.shape[0],
        "width": kernel.shape[-1],
        **read_blocks(),
        "feed_forward": "swiglu" if swiglu else "mlp",
        "grid": need(f"{TOKENS}/posembed_input", (1, None, None, None)).shape[1],
        "num_global_tokens": need(f"{TOKENS}/cls", (1, None, None)).shape[1],
    }
