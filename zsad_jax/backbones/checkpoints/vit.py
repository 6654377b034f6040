"""Files of the vision towers of `backbones.vit`: their PyTorch layouts, and the sizes that arrays show."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from zsad_jax.backbones.checkpoints import torch_layout
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.registry import TIPS_TOWERS, TowerSize

TOKENS = "encoder/ToTokenSequence_0"
BLOCKS = "encoder/transformer/encoderblock_"
NORM = "encoder/encoder_norm"
# Of the original DINOv2 and of TIPS.
DINOV2_NAMES = {
    "patch_embed.proj.weight": f"{TOKENS}/embedding/kernel",
    "patch_embed.proj.bias": f"{TOKENS}/embedding/bias",
    "pos_embed": f"{TOKENS}/posembed_input",
    "cls_token": f"{TOKENS}/cls",
    "register_tokens": f"{TOKENS}/registers",
    "norm.weight": f"{NORM}/scale",
    "norm.bias": f"{NORM}/bias",
    "mask_token": "mask_token",
}
# The dense layers whose outputs the two LayerScales of a block scale; the last one of a SwiGLU is Dense_2.
_SCALED = ((f"{torch_layout.ATTENTION}/out",), ("MlpBlock_0/Dense_1", "FFNSwiGluFused_0/Dense_2"))


def default_heads(width: int, released: Mapping[str, TowerSize] = TIPS_TOWERS) -> int:
    """Returns the number of heads of the released tower of this width; else one for each 64 of the width.

    The arrays of PyTorch files do not show it.
    """
    heads = {tower.width: tower.num_heads for tower in released.values()}
    return heads.get(width, max(width // 64, 1))


def from_pytorch(
    arrays: Arrays,
    layout: torch_layout.Layout,
    num_heads: int | None,
    source: str,
    *,
    num_registers: int | None = None,
    class_position: bool = True,
) -> torch_layout.Native:
    """Returns a tower in native names and layouts, with class and register tokens in one array.

    LayerScale is folded into dense layers, and the position of the class token into that token. Arrays that
    are missing, unknown or misshapen are left for `fit_tree` to list.

    Args:
      arrays, layout, source: the file, its names, and itself in words for errors.
      num_heads: None: that of the released tower of this width.
      num_registers: None: any number.
      class_position: whether the first row of the position table is that of the class token.
    """
    native = layout.to_native(arrays, 1)  # heads do not matter yet
    need = torch_layout.Native(native, source, layout.name_in_file, arrays).need
    count, width = need(f"{TOKENS}/posembed_input", 1, None, None).shape[1:]
    heads = torch_layout.check_heads(num_heads or default_heads(width), width, source)
    native |= layout.to_native(arrays, heads)
    # The other rows are those of the patches, row by row.
    grid = math.isqrt(max(count - class_position, 0))
    table = need(f"{TOKENS}/posembed_input", 1, grid**2 + class_position, width)
    # [out, in, rows, columns] -> [rows, columns, in, out].
    kernel = need(f"{TOKENS}/embedding/kernel", width, 3, None, None).transpose(2, 3, 1, 0)
    tokens = [need(f"{TOKENS}/cls", 1, 1, width)]
    if class_position:
        tokens[0] = tokens[0] + table[:, :1]
    if num_registers or f"{TOKENS}/registers" in native:
        tokens.append(need(f"{TOKENS}/registers", 1, num_registers, width))
    folded = {f"{TOKENS}/registers", "mask_token"}  # the latter is of pre-training
    for block in (f"{BLOCKS}{i}/" for i in range(torch_layout.count_blocks(native, BLOCKS))):
        for scale, targets in zip(layout.scales, _SCALED, strict=True):
            gamma = need(f"{block}{scale}", width)
            folded.add(f"{block}{scale}")
            for name in (f"{block}{one}/{leaf}" for one in targets for leaf in ("kernel", "bias")):
                # Outputs are the last axis: s * (x W + b) = x (W s) + b s. Whether released scales differ from
                # 1 is not documented, so they are never assumed to be 1.
                if name in native and native[name].shape[-1:] == gamma.shape:
                    native[name] = native[name] * gamma
    native |= {
        f"{TOKENS}/embedding/kernel": kernel,
        f"{TOKENS}/posembed_input": table[:, class_position:].reshape(1, grid, grid, width),
        f"{TOKENS}/cls": np.concatenate(tokens, axis=1),
    }
    kept = {name: array for name, array in native.items() if name not in folded}
    return torch_layout.Native(kept, source, layout.name_in_file, arrays)


def vision_sizes(native: torch_layout.Native, begin: str = "") -> dict[str, Any]:
    """Returns the fields of `vit.ViTSizes` that arrays show, whose names begin with `begin`."""
    kernel = native.need(f"{begin}{TOKENS}/embedding/kernel", None, None, 3, None)
    return {
        "patch_size": kernel.shape[0],
        "width": kernel.shape[-1],
        **native.block_sizes(f"{begin}{BLOCKS}"),
        "grid": native.need(f"{begin}{TOKENS}/posembed_input", 1, None, None, None).shape[1],
    }
