"""The blocks of PyTorch files in the names and layouts of the shared tower, for every naming scheme.

Matrices are [out, in] there and [in, out] here, attention's with the heads apart; query, key and value may be
the rows of one matrix, and so may the two branches of a SwiGLU.
"""

import re
from collections.abc import Mapping

import numpy as np

from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.utils.errors import UserError

Parts = Mapping[str, tuple[str, ...]]  # PyTorch's name of a layer -> its native ones

ATTENTION = "MultiHeadDotProductAttention_0"
QUERY_KEY_VALUE = tuple(f"{ATTENTION}/{name}" for name in ("query", "key", "value"))
# OpenAI's names, which open_clip and TIPS's text side have too.
OPENAI_PARTS: Parts = {
    "ln_1": ("LayerNorm_0",),
    "ln_2": ("LayerNorm_1",),
    "attn.in_proj": QUERY_KEY_VALUE,
    "attn.out_proj": (f"{ATTENTION}/out",),
    "mlp.c_fc": ("MlpBlock_0/Dense_0",),
    "mlp.c_proj": ("MlpBlock_0/Dense_1",),
}
HUGGING_FACE_PARTS: Parts = {
    "layer_norm1": ("LayerNorm_0",),
    "layer_norm2": ("LayerNorm_1",),
    "self_attn.q_proj": QUERY_KEY_VALUE[:1],
    "self_attn.k_proj": QUERY_KEY_VALUE[1:2],
    "self_attn.v_proj": QUERY_KEY_VALUE[2:],
    "self_attn.out_proj": (f"{ATTENTION}/out",),
    "mlp.fc1": ("MlpBlock_0/Dense_0",),
    "mlp.fc2": ("MlpBlock_0/Dense_1",),
}
TIPS_VISION_PARTS: Parts = {
    "norm1": ("LayerNorm_0",),
    "norm2": ("LayerNorm_1",),
    "attn.qkv": QUERY_KEY_VALUE,
    "attn.proj": (f"{ATTENTION}/out",),
    "mlp.fc1": ("MlpBlock_0/Dense_0",),
    "mlp.fc2": ("MlpBlock_0/Dense_1",),
    # The gate and the linear branch are rows of one matrix.
    "mlp.w12": ("FFNSwiGluFused_0/Dense_0", "FFNSwiGluFused_0/Dense_1"),
    "mlp.w3": ("FFNSwiGluFused_0/Dense_2",),
}
_PARTS = {**OPENAI_PARTS, **HUGGING_FACE_PARTS, **TIPS_VISION_PARTS}


def name_in_block(native: str, parts: Parts) -> str:
    """Returns the name in a PyTorch block of one of its native arrays, "LayerNorm_0/scale" for example."""
    target, _, leaf = native.rpartition("/")
    part = next((part for part, targets in parts.items() if target in targets), None)
    if part is None:
        return native
    # PyTorch's attention names its joint matrix "in_proj_weight", not "in_proj.weight".
    joint = "_" if part == "attn.in_proj" else "."
    return f"{part}{joint}{'bias' if leaf == 'bias' else 'weight'}"


def lay_out_block(block: Arrays, num_heads: int) -> dict[str, np.ndarray]:
    """Returns a block's arrays in the tower's names and layouts, nearly all of them views.

    Args:
      block: arrays by their names in the block ("attn.in_proj_weight", "mlp.fc1.bias", ...).
      num_heads: a divisor of the width.

    Returns:
      The arrays; what is unknown keeps its name and what has no fitting shape keeps it, for
      `checkpoints.fit_tree` to list.
    """
    native: dict[str, np.ndarray] = {}
    for name, array in block.items():
        match = re.fullmatch(r"(.+)[._](weight|bias)", name)
        targets = _PARTS.get(match[1], ()) if match else ()
        if not (match and targets and array.ndim and len(array) % len(targets) == 0):
            native[name] = array
            continue
        # Rows of one matrix are split before the transposition, so that every part stays a view.
        for target, rows in zip(targets, np.split(array, len(targets)), strict=True):
            leaf = _leaf(target, match[2])
            native[f"{target}/{leaf}"] = _lay_out(target, leaf, rows, num_heads)
    return native


def _leaf(target: str, kind: str) -> str:
    if kind == "bias":
        return kind
    return "scale" if target.startswith("LayerNorm") else "kernel"


def _lay_out(target: str, leaf: str, array: np.ndarray, num_heads: int) -> np.ndarray:
    # A head is k neighbors, among the outputs of query, key and value ([in, out] -> [in, heads, k]) and
    # among the inputs of the output layer ([in, out] -> [heads, k, out]). A bias is its own transpose.
    turned = array.T
    try:
        if target in QUERY_KEY_VALUE:
            return turned.reshape(*turned.shape[:-1], num_heads, -1)
        if target == f"{ATTENTION}/out" and leaf == "kernel":
            return turned.reshape(num_heads, -1, turned.shape[-1])
    except ValueError:  # kept as it is, for `fit_tree` to list it with all others
        return array
    return turned


def check_heads(num_heads: int, width: int, source: str) -> int:
    """Returns the number of heads.

    Raises:
      UserError: it does not divide the width.
    """
    if num_heads < 1 or width % num_heads:
        raise UserError(
            f"{source} is {width} wide, which is not a multiple of {num_heads} attention heads."
            " Pass the right num_heads (and text_num_heads)."
        )
    return num_heads


def count_blocks(arrays: Arrays, pattern: str) -> int:
    """Returns one more than the largest block number among the names that match `pattern` (one group)."""
    # The largest number, not the count of numbers: a block that is missing is then reported by `fit_tree`.
    numbers = [int(match[1]) for name in arrays if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
