"""TIPS files: which lineage they are of, what sizes they hold, and the PyTorch key names as a table."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from zsad_jax.backbones.tips import TextSizes, VisionSizes
from zsad_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]

PREFIX = "encoder/transformer/encoderblock_"
ATTENTION = "MultiHeadDotProductAttention_0"
# Head counts by width, for files whose arrays do not show them (PyTorch's fused matrices).
NUM_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24}


def is_pytorch(arrays: Arrays) -> bool:
    """Whether the keys are those of the PyTorch release (dots) and not of the native one (slashes)."""
    return not any("/" in name for name in arrays)


def count_blocks(arrays: Arrays, pattern: str) -> int:
    """One more than the largest block number among the names that match `pattern` (one group)."""
    numbers = [int(match[1]) for name in arrays if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _need(arrays: Arrays, name: str, source: str) -> np.ndarray:
    if name not in arrays:
        raise UserError(
            f"{source} is not a TIPS file of the expected side: it has no array {name!r}"
            f" (it begins with {sorted(arrays)[:3]}); are vision and text files swapped?"
        )
    return arrays[name]


def vision_from_pytorch(arrays: Arrays, *, num_heads: int, source: str) -> dict[str, np.ndarray]:
    """Native names and layouts of a PyTorch vision file, LayerScale folded into the dense layers before it."""
    pos = _need(arrays, "pos_embed", source)
    width = pos.shape[-1]
    grid = round((pos.shape[1] - 1) ** 0.5)
    first = _need(arrays, "cls_token", source) + pos[:, :1]
    tokens = "encoder/ToTokenSequence_0"
    out = {
        f"{tokens}/embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        f"{tokens}/embedding/bias": arrays["patch_embed.proj.bias"],
        f"{tokens}/posembed_input": pos[:, 1:].reshape(1, grid, grid, width),
        f"{tokens}/cls": np.concatenate([first, arrays["register_tokens"]], axis=1),
        "encoder/encoder_norm/scale": arrays["norm.weight"],
        "encoder/encoder_norm/bias": arrays["norm.bias"],
    }
    for i in range(count_blocks(arrays, r"blocks\.(\d+)\.")):
        block = {k.split(".", 2)[2]: v for k, v in arrays.items() if k.startswith(f"blocks.{i}.")}
        after_attention = block.get("ls1.gamma", np.ones(width, np.float32))
        after_ffn = block.get("ls2.gamma", np.ones(width, np.float32))
        native = {
            **_norms(block, "norm1", "norm2"),
            **_attention(block, "attn.qkv.", "attn.proj.", num_heads, scale=after_attention),
        }
        if "mlp.w12.weight" in block:
            gate, linear = np.split(block["mlp.w12.weight"], 2)
            gate_bias, linear_bias = np.split(block["mlp.w12.bias"], 2)
            native |= _dense("FFNSwiGluFused_0/Dense_0", gate, gate_bias)
            native |= _dense("FFNSwiGluFused_0/Dense_1", linear, linear_bias)
            native |= _dense("FFNSwiGluFused_0/Dense_2", block["mlp.w3.weight"], block["mlp.w3.bias"], after_ffn)
        else:
            native |= _dense("MlpBlock_0/Dense_0", block["mlp.fc1.weight"], block["mlp.fc1.bias"])
            native |= _dense("MlpBlock_0/Dense_1", block["mlp.fc2.weight"], block["mlp.fc2.bias"], after_ffn)
        out |= {f"{PREFIX}{i}/{name}": array for name, array in native.items()}
    return out


def text_from_pytorch(arrays: Arrays, *, num_heads: int, source: str) -> dict[str, np.ndarray]:
    """Native names and layouts of a PyTorch text file."""
    out = {
        "token_emb/emb_var": _need(arrays, "token_embedding.weight", source),
        "text_encoder_norm/scale": arrays["ln_final.weight"],
        "text_encoder_norm/bias": arrays["ln_final.bias"],
    }
    for name in ("temperature", "temperature_contrastive"):
        if name in arrays:
            out["temperature_contrastive"] = arrays[name]
    for i in range(count_blocks(arrays, r"transformer\.resblocks\.(\d+)\.")):
        prefix = f"transformer.resblocks.{i}."
        block = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        native = {
            **_norms(block, "ln_1", "ln_2"),
            **_attention(block, "attn.in_proj_", "attn.out_proj.", num_heads),
            **_dense("MlpBlock_0/Dense_0", block["mlp.c_fc.weight"], block["mlp.c_fc.bias"]),
            **_dense("MlpBlock_0/Dense_1", block["mlp.c_proj.weight"], block["mlp.c_proj.bias"]),
        }
        out |= {f"transformer/encoderblock_{i}/{name}": array for name, array in native.items()}
    return out


def _norms(block: Arrays, first: str, second: str) -> dict[str, np.ndarray]:
    return {
        f"LayerNorm_{i}/{ours}": block[f"{name}.{theirs}"]
        for i, name in enumerate((first, second))
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    }


def _dense(
    name: str, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    kernel = weight.T
    if scale is not None:
        kernel, bias = kernel * scale, bias * scale
    return {f"{name}/kernel": kernel, f"{name}/bias": bias}


def _attention(
    block: Arrays, fused: str, out: str, num_heads: int, scale: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Query, key and value out of one fused matrix of rows [q; k; v]."""
    weight, bias = block[f"{fused}weight"], block[f"{fused}bias"]
    width = weight.shape[1]
    heads = (num_heads, width // num_heads)
    native: dict[str, np.ndarray] = {}
    for i, name in enumerate(("query", "key", "value")):
        rows = slice(i * width, (i + 1) * width)
        native[f"{ATTENTION}/{name}/kernel"] = weight[rows].T.reshape(width, *heads)
        native[f"{ATTENTION}/{name}/bias"] = bias[rows].reshape(heads)
    dense = _dense("out", block[f"{out}weight"], block[f"{out}bias"], scale)
    native[f"{ATTENTION}/out/kernel"] = dense["out/kernel"].reshape(*heads, width)
    native[f"{ATTENTION}/out/bias"] = dense["out/bias"]
    return native


def default_heads(width: int) -> int:
    """The released number of heads for a width; 64 per head where no release has that width."""
    return NUM_HEADS.get(width, max(width // 64, 1))


def read_sizes_vision(arrays: Arrays, source: str) -> dict[str, Any]:
    """Fields of `VisionSizes` that native arrays show."""
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
    """Fields of `TextSizes` that native arrays show."""
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


__all__ = [
    "TextSizes",
    "VisionSizes",
    "default_heads",
    "is_pytorch",
    "read_sizes_text",
    "read_sizes_vision",
    "text_from_pytorch",
    "vision_from_pytorch",
]
