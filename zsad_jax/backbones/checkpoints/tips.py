"""TIPS files: their lineage and sizes, and the PyTorch layout."""

from typing import Any

import jax
import numpy as np

from zsad_jax.backbones.checkpoints.read import Arrays, fit_tree
from zsad_jax.backbones.checkpoints.torch_layout import (
    ATTENTION,
    Shapes,
    below,
    check_heads,
    count_blocks,
    lay_out_block,
)
from zsad_jax.backbones.registry import TIPS_TOWERS
from zsad_jax.utils.errors import UserError

PREFIX = "encoder/transformer/encoderblock_"
# Head counts by width, for files whose arrays do not show them (PyTorch's fused matrices).
NUM_HEADS = {tower.width: tower.num_heads for tower in TIPS_TOWERS.values()}


def is_pytorch(arrays: Arrays) -> bool:
    """Returns whether the keys are those of the PyTorch release (dots) and not of the native one (slashes)."""
    return not any("/" in name for name in arrays)


def _need(arrays: Arrays, name: str, source: str) -> np.ndarray:
    if name not in arrays:
        raise UserError(
            f"{source} is not a TIPS file of the expected side. It has no array {name!r}"
            f" (its first names are {', '.join(sorted(arrays)[:3])}). Check that the vision and text files are"
            " not swapped."
        )
    return arrays[name]


def vision_from_pytorch(arrays: Arrays, num_heads: int | None, source: str) -> Arrays:
    """Returns a PyTorch vision file in native names and layouts, with LayerScale folded into dense layers."""
    pos = _need(arrays, "pos_embed", source)
    width, depth = pos.shape[-1], count_blocks(arrays, r"blocks\.(\d+)\.")
    swiglu = "blocks.0.mlp.w12.weight" in arrays
    hidden = _need(
        arrays, "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight", source
    ).shape[1]
    patch = _need(arrays, "patch_embed.proj.weight", source).shape[-1]
    shapes = pytorch_vision_shapes(
        width=width, depth=depth, hidden=hidden, patch=patch, positions=pos.shape[1], swiglu=swiglu
    )
    arrays = _checked(arrays, shapes, source)
    # Row 0 is that of the class token; the others are those of the patches, row by row.
    grid = round((pos.shape[1] - 1) ** 0.5)
    # Native global tokens have no positions: that of PyTorch's class token is added to it once and for all.
    first = arrays["cls_token"] + arrays["pos_embed"][:, :1]
    tokens = "encoder/ToTokenSequence_0"
    out = {
        # [out, in, rows, columns] -> [rows, columns, in, out].
        f"{tokens}/embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        f"{tokens}/embedding/bias": arrays["patch_embed.proj.bias"],
        f"{tokens}/posembed_input": arrays["pos_embed"][:, 1:].reshape(1, grid, grid, width),
        f"{tokens}/cls": np.concatenate([first, arrays["register_tokens"]], axis=1),
        "encoder/encoder_norm/scale": arrays["norm.weight"],
        "encoder/encoder_norm/bias": arrays["norm.bias"],
    }
    heads = check_heads(num_heads or default_heads(width), width, source)
    for i in range(depth):
        native = _vision_block(below(arrays, f"blocks.{i}."), heads)
        out |= {f"{PREFIX}{i}/{name}": array for name, array in native.items()}
    return out


def _vision_block(block: Arrays, num_heads: int) -> dict[str, np.ndarray]:
    """Returns a block without its LayerScale, which is folded into the dense layer before it."""
    # s * (x W + b) = x (W s) + b s. Whether released scales differ from 1 is not documented, so they are never
    # assumed to be 1.
    scales = {"attn.proj": block["ls1.gamma"], "mlp.fc2": block["ls2.gamma"]}
    # The last layer of the feed-forward part is fc2, or w3 where it is a SwiGLU.
    scales["mlp.w3"] = scales["mlp.fc2"]
    scaled = {}
    for name, array in block.items():
        part, _, kind = name.rpartition(".")
        if kind == "gamma":
            continue
        if part in scales:  # a scale of outputs, which are the rows of PyTorch's matrices
            array = array * (scales[part][:, None] if kind == "weight" else scales[part])
        scaled[name] = array
    return lay_out_block(scaled, num_heads)


def text_from_pytorch(arrays: Arrays, num_heads: int | None, source: str) -> Arrays:
    """Returns a PyTorch text file in native names and layouts."""
    table = _need(arrays, "token_embedding.weight", source)
    width, depth = table.shape[1], count_blocks(arrays, r"transformer\.resblocks\.(\d+)\.")
    hidden = _need(arrays, "transformer.resblocks.0.mlp.c_fc.weight", source).shape[0]
    # Some files hold the temperature under its native name.
    temperature = next(
        (k for k in ("temperature_contrastive", "temperature") if k in arrays), "temperature"
    )
    shapes = pytorch_text_shapes(vocabulary=table.shape[0], width=width, depth=depth, hidden=hidden)
    del shapes["temperature"]
    shapes[temperature] = arrays[temperature].shape if temperature in arrays else ()
    arrays = _checked(arrays, shapes, source)
    out = {
        "token_emb/emb_var": arrays["token_embedding.weight"],
        "text_encoder_norm/scale": arrays["ln_final.weight"],
        "text_encoder_norm/bias": arrays["ln_final.bias"],
        "temperature_contrastive": arrays[temperature],
    }
    heads = check_heads(num_heads or default_heads(width), width, source)
    for i in range(depth):
        native = lay_out_block(below(arrays, f"transformer.resblocks.{i}."), heads)
        out |= {f"transformer/encoderblock_{i}/{name}": array for name, array in native.items()}
    return out


def pytorch_vision_shapes(
    *, width: int, depth: int, hidden: int, patch: int, positions: int, swiglu: bool
) -> Shapes:
    """Returns names and shapes of a PyTorch vision file, without the mask token that inference ignores."""
    feed_forward = (
        _linear_shapes("mlp.w12.", width, 2 * hidden) | _linear_shapes("mlp.w3.", hidden, width)
        if swiglu
        else _linear_shapes("mlp.fc1.", width, hidden) | _linear_shapes("mlp.fc2.", hidden, width)
    )
    block = {
        **_linear_shapes("attn.qkv.", width, 3 * width),
        **_linear_shapes("attn.proj.", width, width),
        **feed_forward,
        **{f"norm{j}.{kind}": (width,) for j in (1, 2) for kind in ("weight", "bias")},
        **{f"ls{j}.gamma": (width,) for j in (1, 2)},
    }
    return {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed": (1, positions, width),
        "cls_token": (1, 1, width),
        "register_tokens": (1, 1, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()},
    }


def pytorch_text_shapes(*, vocabulary: int, width: int, depth: int, hidden: int) -> Shapes:
    """Returns names and shapes of a PyTorch text file."""
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        **_linear_shapes("attn.out_proj.", width, width),
        **_linear_shapes("mlp.c_fc.", width, hidden),
        **_linear_shapes("mlp.c_proj.", hidden, width),
        **{f"ln_{j}.{kind}": (width,) for j in (1, 2) for kind in ("weight", "bias")},
    }
    return {
        "token_embedding.weight": (vocabulary, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "temperature": (),
        **{
            f"transformer.resblocks.{i}.{name}": shape
            for i in range(depth)
            for name, shape in block.items()
        },
    }


def _checked(arrays: Arrays, shapes: Shapes, source: str) -> Arrays:
    """Returns the arrays; one error lists everything missing, unexpected or misshapen."""
    expected = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    used = {
        name: array for name, array in arrays.items() if name != "mask_token"
    }  # of pre-training
    return fit_tree(used, expected, source=source)


def _linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}


def default_heads(width: int) -> int:
    """Returns the released number of heads for a width; 64 per head where no release has that width."""
    return NUM_HEADS.get(width, max(width // 64, 1))


def read_sizes_vision(arrays: Arrays, source: str) -> dict[str, Any]:
    """Returns the fields of `VisionSizes` that native arrays show."""
    tokens = "encoder/ToTokenSequence_0"
    kernel = _need(arrays, f"{tokens}/embedding/kernel", source)
    query = _need(arrays, f"{PREFIX}0/{ATTENTION}/query/kernel", source)
    swiglu = f"{PREFIX}0/FFNSwiGluFused_0/Dense_0/kernel" in arrays
    dense = f"{PREFIX}0/{'FFNSwiGluFused_0' if swiglu else 'MlpBlock_0'}/Dense_0/kernel"
    return {
        "patch_size": kernel.shape[0],
        "width": kernel.shape[-1],
        "depth": count_blocks(arrays, rf"{PREFIX}(\d+)/"),
        "num_heads": query.shape[1],
        "mlp_dim": _need(arrays, dense, source).shape[1],
        "feed_forward": "swiglu" if swiglu else "mlp",
        "grid": _need(arrays, f"{tokens}/posembed_input", source).shape[1],
        "num_global_tokens": _need(arrays, f"{tokens}/cls", source).shape[1],
    }


def read_sizes_text(arrays: Arrays, source: str) -> dict[str, Any]:
    """Returns the fields of `TextSizes` that native arrays show."""
    table = _need(arrays, "token_emb/emb_var", source)
    query = _need(arrays, f"transformer/encoderblock_0/{ATTENTION}/query/kernel", source)
    dense = _need(arrays, "transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", source)
    return {
        "vocabulary": table.shape[0],
        "width": table.shape[1],
        # So400m's text tower has 27 blocks, the others 12: the file says, not the name.
        "depth": count_blocks(arrays, r"transformer/encoderblock_(\d+)/"),
        "num_heads": query.shape[1],
        "mlp_dim": dense.shape[1],
    }
