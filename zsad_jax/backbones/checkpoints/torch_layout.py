"""The blocks of PyTorch files in the names and layouts of the shared tower, for every naming scheme.

Matrices are [out, in] there and [in, out] here, attention's with the heads apart; query, key and value may be
the rows of one matrix, and so may the two branches of a SwiGLU.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from zsad_jax.backbones.checkpoints.read import Arrays, Tree, fit_tree
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
DINOV2_PARTS: Parts = {
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


class Layout(NamedTuple):
    """Names of a tower in a PyTorch file.

    Attributes:
      outside: native names by those of the arrays outside the blocks.
      blocks, native_blocks: what the names of a block begin with, before its number.
      parts: of a block.
      scales: the LayerScales of a block that has them.
    """

    outside: Mapping[str, str]
    blocks: str
    native_blocks: str
    parts: Parts
    scales: tuple[str, str] = ("ls1.gamma", "ls2.gamma")

    def to_native(self, arrays: Arrays, num_heads: int) -> dict[str, np.ndarray]:
        """Returns a tower in native names and the layouts of native blocks, nearly all arrays as views.

        What is unknown keeps its name, and so does what has no fitting shape, for `fit_tree` to list.
        """
        native: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            if match := re.match(rf"{re.escape(self.blocks)}(\d+)\.", name):
                block = f"{self.native_blocks}{match[1]}/"
                laid_out = lay_out(name[match.end() :], array, self.parts, num_heads)
                native |= {f"{block}{name}": part for name, part in laid_out.items()}
            else:
                native[self.outside.get(name, name)] = array
        return native

    def name_in_file(self, native: str) -> str:
        """Returns the PyTorch name of a native array, which may be one of several parts of that array."""
        if match := re.fullmatch(rf"{self.native_blocks}(\d+)/(.+)", native):
            own = match[2]  # of an array that is unknown or does not fit
            target, _, leaf = own.rpartition("/")
            for part, targets in self.parts.items():
                if target in targets:
                    # PyTorch's attention names its joint matrix "in_proj_weight", not "in_proj.weight".
                    joint = "_" if part.endswith(".in_proj") else "."
                    own = f"{part}{joint}{'bias' if leaf == 'bias' else 'weight'}"
            return f"{self.blocks}{match[1]}.{own}"
        return next((name for name, own in self.outside.items() if own == native), native)


class Native(NamedTuple):
    """Arrays by native names; for errors, their file in words and its names, if they are others."""

    arrays: Arrays
    source: str
    name_in_file: Callable[[str], str] = str
    names: Collection[str] = ()

    def need(self, name: str, *shape: int | None) -> np.ndarray:
        """Returns an array that shows sizes; None in the shape stands for any length."""
        found = self.arrays[name].shape if name in self.arrays else ()
        if len(found) != len(shape) or any(
            m == 0 or n not in (None, m) for n, m in zip(shape, found, strict=True)
        ):
            first = ", ".join(sorted(self.names or self.arrays)[:3])
            raise UserError(
                f"{self.source} has no array {self.name_in_file(name)!r} of the expected shape (its first names"
                f" are {first}). Check that it is a complete file of the named model, and that no two files are"
                " swapped."
            )
        return self.arrays[name]

    def fit(self, expected: Mapping[str, Any]) -> Tree:
        """Returns the arrays as the tree that modules expect; see `fit_tree`."""
        return fit_tree(self.arrays, expected, source=self.source, name_in_file=self.name_in_file)

    def block_sizes(self, blocks: str) -> dict[str, Any]:
        """Returns the sizes that the blocks of a tower show, whose names begin with `blocks`."""
        gated = f"{blocks}0/FFNSwiGluFused_0/Dense_0/kernel" in self.arrays
        dense = "FFNSwiGluFused_0" if gated else "MlpBlock_0"
        return {
            "depth": count_blocks(self.arrays, blocks),
            "num_heads": self.need(f"{blocks}0/{ATTENTION}/query/kernel", *[None] * 3).shape[1],
            "mlp_dim": self.need(f"{blocks}0/{dense}/Dense_0/kernel", None, None).shape[1],
            **({"feed_forward": "swiglu"} if gated else {}),
        }


def lay_out(name: str, array: np.ndarray, parts: Parts, num_heads: int) -> dict[str, np.ndarray]:
    """Returns an array of a block in native names and layouts, or as it is if it does not fit.

    Args:
      name: in the block ("attn.in_proj_weight", "mlp.fc1.bias", ...).
      num_heads: a divisor of the width.
    """
    match = re.fullmatch(r"(.+)[._](weight|bias)", name)
    targets = parts.get(match[1], ()) if match else ()
    if not (match and targets and array.ndim and len(array) % len(targets) == 0):
        return {name: array}
    leaves = [f"{target}/{_leaf(target, match[2])}" for target in targets]
    # Rows of one matrix are split before the transposition, so that every part stays a view.
    rows = zip(targets, leaves, np.split(array, len(targets)), strict=True)
    return {leaf: _lay_out(target, leaf, part, num_heads) for target, leaf, part in rows}


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
        if target == f"{ATTENTION}/out" and leaf.endswith("kernel"):
            return turned.reshape(num_heads, -1, turned.shape[-1])
    except ValueError:  # kept as it is, for `fit_tree` to list it with all others
        return array
    return turned


def check_heads(num_heads: int, width: int, source: str) -> int:
    """Returns the number of heads; raises `UserError` if it does not divide the width."""
    if num_heads < 1 or width % num_heads:
        raise UserError(
            f"{source} is {width} wide, which is not a multiple of {num_heads} attention heads."
            " Pass the right num_heads (and text_num_heads)."
        )
    return num_heads


def check_same_heads(found: int, given: int | None, source: str) -> None:
    """Raises UserError if a number of heads is given and is not that of the arrays."""
    if given not in (None, found):
        raise UserError(f"{source} has {found} attention heads, not {given}. Omit num_heads.")


def count_blocks(arrays: Arrays, prefix: str) -> int:
    """Returns one more than the largest block number among the names that begin with `prefix` and a number."""
    # The largest number, not the count of numbers: a block that is missing is then reported by `fit_tree`, as
    # is a name with more than three digits, which damage makes.
    pattern = re.compile(rf"{re.escape(prefix)}(\d{{1,3}})/")
    numbers = [int(match[1]) for name in arrays if (match := pattern.match(name))]
    return max(numbers, default=-1) + 1


def below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
