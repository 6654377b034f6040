"""The one pre-LN transformer tower that every backbone's vision and text side is made of.

A variant that some method needs is a named option here, never a copy of the tower. The parameter names are
those of the native TIPS files (flax's own names), so a native file's tree is the module's tree.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from zsad_jax.backbones.base import Adapters, AnyArray, Params, TextOptions, VisionOptions, VVPath
from zsad_jax.utils import sharding
from zsad_jax.utils.errors import UserError

AttentionForm = Literal["auto", "plain"]
# Up to this many tokens the plain form is as fast, and its gradient is cheaper.
PLAIN_ATTENTION_TOKENS = 256
EXTRA_NORM_EPSILON = 1e-6  # of the norm that VCP-CLIP learns
FUSED_HEAD_SIZES = range(8, 129, 8)  # of cuDNN on every GPU that has its fused attention

# Weights need the one that they were trained with: the tanh form is off the exact one by up to 5e-4, the quick
# one by up to 0.02, and the differences grow with the depth of a tower.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


FeedForward = Literal["mlp", "swiglu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Sizes of a tower, which its arrays show, and options, which they do not show.

    Attributes:
      mlp_dim: hidden width of the feed-forward (of the SwiGLU branch, where it is one).
      dtype: of the matrix products; norms and softmax stay float32.
      attention: "auto", the form that is fastest on the device, or "plain".
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    dtype: DTypeLike = jnp.float32
    attention: AttentionForm = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTowerSizes(TowerSizes):
    """Sizes that the vision towers of all families have.

    Attributes:
      grid: side of the position table.
      embed_dim: width of the joint space; None: that of the tower.
    """

    patch_size: int
    grid: int
    num_global_tokens: int
    embed_dim: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTowerSizes(TowerSizes):
    """Sizes that the text towers of all families have.

    Attributes:
      length: tokens per text.
      num_start_tokens: tokens before the words of a text.
    """

    vocabulary: int
    length: int
    num_start_tokens: int


def as_rows(x: Float[Array, "b n d"]) -> Float[Array, "bn d"]:
    """Returns all tokens as one matrix."""
    # On a CPU this makes the dense layers of narrow towers 1.3 times faster.
    return x.reshape(-1, x.shape[-1])


def _attend_plain(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    valid: Bool[Array, "b m"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "b n h k"]:
    """Computes softmax attention in one piece, with logits and softmax in float32."""
    # The n k numbers of the queries are scaled and not the n m logits, of which an image has more.
    query = query * query.shape[-1] ** -0.5
    # A bfloat16 logit near 10 has an error of up to 0.03, which would change its weight by 3 %.
    logits = jnp.einsum("bnhk,bmhk->bhnm", query, key, preferred_element_type=jnp.float32)
    # A finite minimum, so that a text that is all padding gives a uniform row and not NaN.
    minimum = jnp.finfo(jnp.float32).min
    if valid is not None:
        logits = jnp.where(valid[:, None, None, :], logits, minimum)
    if causal:
        n, m = logits.shape[2:]
        logits = jnp.where(jnp.tri(n, m, dtype=bool), logits, minimum)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhnm,bmhk->bnhk", weights, value)


def _attend_by_head(
    query: Float[Array, "b n h k"], key: Float[Array, "b m h k"], value: Float[Array, "b m h k"]
) -> Float[Array, "b n h k"]:
    """Computes the same, one head of one image at a time."""
    # On a CPU the [n m] weights of a single head stay in the cache, which at 1,370 tokens is three times
    # faster than writing those of all heads to memory.
    b, n, h, k = query.shape
    query = query * k**-0.5

    def one(head: tuple[Array, Array, Array]) -> Array:
        q, kk, v = head
        logits = jnp.einsum("nk,mk->nm", q, kk, preferred_element_type=jnp.float32)
        # Normalizing after the product touches [n k] numbers and not [n m].
        # The largest logit is subtracted, so that no exponential overflows. It cancels: its gradient is 0.
        largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / total).astype(v.dtype)

    # [b n h k] -> [b h n k] -> [b h, n k], since `lax.map` runs over the first axis.
    heads = [jnp.moveaxis(x, 2, 1).reshape(b * h, x.shape[1], k) for x in (query, key, value)]
    mixed = jax.lax.map(one, tuple(heads))
    return jnp.moveaxis(mixed.reshape(b, h, n, k), 1, 2)


# cuDNN's form keeps the [n m] weights in the cache of a GPU. JAX rejects its gradient for an odd number of
# tokens, for which the plain form has one.
_attend_fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
_attend_fused_odd = jax.custom_vjp(_attend_fused)
_attend_fused_odd.defvjp(functools.partial(jax.vjp, _attend_plain), lambda pull, out: pull(out))


@functools.cache
def _has_fused_attention() -> bool:
    """Returns whether cuDNN's fused attention runs on the GPUs of this process, from Ampere on."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # there is no CUDA
        return False
    if any(float(one.compute_capability) < 8 for one in devices):
        return False
    try:
        jax.eval_shape(_attend_fused, *[jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)] * 3)
    except RuntimeError as error:  # no cuDNN, or one that is too old for the GPU
        logging.warning("Attention takes the plain form, which is slower: %s", error)
        return False
    return True


def attend(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    *,
    valid: Bool[Array, "b m"] | None = None,
    causal: bool = False,
    form: AttentionForm = "auto",
) -> Float[Array, "b n h k"]:
    """Computes softmax attention over the tokens m that are `valid` (None: all); scale 1/sqrt(k).

    Logits and softmax are float32 whatever the compute type. `causal`: a token sees none after it. The form
    "auto" is that of the device: one head at a time on a CPU, cuDNN's on a GPU where the compute type has two
    bytes, and the plain one elsewhere, and for short or masked sequences.
    """
    # Masks are those of texts, which are short: only vision towers take other forms.
    masked = causal or valid is not None
    if form == "plain" or masked or key.shape[1] <= PLAIN_ATTENTION_TOKENS:
        return _attend_plain(query, key, value, valid, causal=causal)
    forms = {"cpu": _attend_by_head}
    # Without CUDA, tracing cuDNN's form is an error, even in a program for another device.
    fits = query.dtype.itemsize == 2 and query.shape[-1] in FUSED_HEAD_SIZES
    if fits and _has_fused_attention():
        odd = query.shape[1] % 2 or key.shape[1] % 2
        forms["cuda"] = _attend_fused_odd if odd else _attend_fused
    # The choice is made when a program is lowered, since its device need not be the default one.
    mixed: Array = jax.lax.platform_dependent(query, key, value, **forms, default=_attend_plain)
    return mixed


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    num_heads: int
    dtype: DTypeLike = jnp.float32
    causal: bool = False
    form: AttentionForm = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        valid: Bool[Array, "b n"] | None,
        stream: Float[Array, "b n d"] | None = None,
        *,
        by_value: bool = False,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"] | None]:
        """Returns the attention, and the value-value stream with its own added, if there is one.

        With `by_value`, values are queries and keys as well.
        """
        b, n, width = x.shape
        heads = (self.num_heads, width // self.num_heads)
        rows = as_rows(x)
        query, key, value = (
            nn.DenseGeneral(heads, dtype=self.dtype, name=name)(rows).reshape(b, n, *heads)
            for name in ("query", "key", "value")
        )
        out = nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out")

        # Both streams pass the same output projection, bias included, as in the published code.
        def attended(query: Array, key: Array) -> Float[Array, "b n d"]:
            mixed = attend(query, key, value, valid=valid, causal=self.causal, form=self.form)
            return out(mixed.reshape(b * n, *heads)).reshape(x.shape)

        # Values as queries and keys: a patch attends to patches with similar values (CLIP Surgery). The stream
        # has no feed-forward part, as published.
        if by_value:
            return attended(value, value), None
        stream = None if stream is None else stream + attended(value, value)
        return attended(query, key), stream


class Mlp(nn.Module):
    """Two dense layers; with a token mask, padded positions are zeroed after each (TIPS's text side)."""

    hidden: int
    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None
    ) -> Float[Array, "b n d"]:
        # Padding is neither attended to nor pooled, so this changes no text embedding; it keeps the rows of
        # padding equal to those of the published code.
        mask = 1 if valid is None else valid.reshape(-1, 1).astype(self.dtype)
        hidden = nn.Dense(self.hidden, dtype=self.dtype, name="Dense_0")(as_rows(x))
        hidden = ACTIVATIONS[self.activation](hidden) * mask
        out = nn.Dense(x.shape[-1], dtype=self.dtype, name="Dense_1")(hidden) * mask
        return out.reshape(x.shape)


class SwiGlu(nn.Module):
    """Gated feed-forward: silu(Dense_0 x) * Dense_1 x, then Dense_2 (Shazeer 2020)."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        rows = as_rows(x)
        gate = nn.Dense(self.hidden, dtype=self.dtype, name="Dense_0")(rows)
        linear = nn.Dense(self.hidden, dtype=self.dtype, name="Dense_1")(rows)
        out = nn.Dense(x.shape[-1], dtype=self.dtype, name="Dense_2")(nn.silu(gate) * linear)
        return out.reshape(x.shape)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one matrix: a convolution whose stride is its size."""

    patch_size: int
    width: int
    dtype: DTypeLike
    use_bias: bool = True

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        p = self.patch_size
        b, h, w = images.shape[0], images.shape[1] // p, images.shape[2] // p
        if not b * h * w:
            raise UserError(
                f"The images are {images.shape}; expected at least {p} pixels a side. Enlarge them."
            )
        shape = (p, p, 3, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), shape)
        # [b, h, p, w, p, 3] -> [b, h, w, p, p, 3]: the pixels of a patch become neighbors, in the order of the
        # kernel's axes (rows, columns, channels). Rows and columns that do not fill a patch are ignored.
        patches = images[:, : h * p, : w * p].reshape(b, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, h, w, p * p * 3).astype(self.dtype)
        embedded = patches @ kernel.reshape(-1, self.width).astype(self.dtype)
        if not self.use_bias:
            return embedded
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return embedded + bias.astype(self.dtype)


def layer_norm(epsilon: float, *, name: str | None = None) -> nn.LayerNorm:
    """Returns LayerNorm in float32, with the variance of centered values (two moments would lose digits)."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class Block(nn.Module):
    """x += attention(LN x); x += feed-forward(LN x).

    The value-value stream y beside it: y += value-value attention(LN x), with the same weights.
    """

    sizes: TowerSizes
    feed_forward: FeedForward
    activation: str
    norm_epsilon: float
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        valid: Bool[Array, "b n"] | None = None,
        stream: Float[Array, "b n d"] | None = None,
        vv_path: VVPath = "beside",
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"] | None]:
        """Returns the block's output for x, and the next state of the value-value stream if there is one."""
        s = self.sizes
        # Norms are float32 even in a bfloat16 tower; only their outputs are rounded for the products.
        y = layer_norm(self.norm_epsilon, name="LayerNorm_0")(x).astype(s.dtype)
        attention = Attention(
            s.num_heads, s.dtype, self.causal, s.attention, name="MultiHeadDotProductAttention_0"
        )
        if vv_path == "through_batch":  # each position is a sequence of images
            mixed = attention(y.swapaxes(0, 1), None, by_value=True)[0].swapaxes(0, 1)
        else:
            mixed, stream = attention(y, valid, stream, by_value=vv_path == "through")
        x = x + mixed
        y = layer_norm(self.norm_epsilon, name="LayerNorm_1")(x).astype(s.dtype)
        if self.feed_forward == "swiglu":
            return x + SwiGlu(s.mlp_dim, s.dtype, name="FFNSwiGluFused_0")(y), stream
        mlp = Mlp(s.mlp_dim, self.activation, s.dtype, name="MlpBlock_0")
        return x + mlp(y, valid), stream


class VisionTower(nn.Module):
    """Base of the vision modules, which map images to `VisionFeatures`."""

    sizes: VisionTowerSizes


def encode_windows(
    encode: Callable[..., Float[Array, "n g e"]],
    modules: Sequence[nn.Module],
    tokens: Float[Array, "b n d"],
    grid: tuple[int, int],
    sizes: Sequence[int],
) -> tuple[Float[Array, "b rows columns g e"], ...]:
    """Returns `encode` of all windows of size x size patches, for each of the sizes.

    A window is the sequence of the tokens before the patches and its own patches: a mask over all patches would
    give the same at many times the cost. `encode` gets sequences [n, t, d] and the modules as pure functions.
    """
    (h, w), (b, n, d) = grid, tokens.shape
    # Within `lax.map`, Flax rejects calls of bound modules.
    parts = [module.unbind() for module in modules]
    functions = [functools.partial(unbound.apply, variables) for unbound, variables in parts]
    before, patches = jnp.split(tokens, [n - h * w], axis=1)
    patches = patches.reshape(b, h, w, d)

    def encode_all(size: int) -> Float[Array, "b rows columns g e"]:
        columns = np.arange(w - size + 1)[:, None] + np.arange(size)
        first = jnp.repeat(before[:, None], len(columns), axis=1)

        def encode_row(top: Array) -> Float[Array, "b columns g e"]:
            inside = jax.lax.dynamic_slice_in_dim(patches, top, size, axis=1)[:, :, columns]
            inside = inside.swapaxes(1, 2).reshape(b, len(columns), size * size, d)
            sequences = jnp.concatenate([first, inside], axis=2)
            found = encode(sequences.reshape(b * len(columns), -1, d), *functions)
            return found.reshape(b, len(columns), *found.shape[1:])

        # A row of windows at a time, which has fewer tokens than the images, so that memory is bounded.
        return jnp.moveaxis(jax.lax.map(encode_row, jnp.arange(h - size + 1)), 0, 1)

    return tuple(encode_all(size) for size in sizes)


class TextTower(nn.Module):
    """Base of the text modules, which map token ids and paddings to text embeddings."""

    sizes: TextTowerSizes

    def __call__(
        self, token_ids: Int[Array, "t n"], paddings: Int[Array, "t n"]
    ) -> Float[Array, "t d"]:
        """Returns text embeddings of token ids, by the methods `embed` and `encode` of each family."""
        out: Array = self.encode(self.embed(token_ids), paddings)
        return out

    def embed(self, token_ids: Int[Array, "t n"]) -> Float[Array, "t n e"]:
        """Looks up token embeddings, without positions; learned tokens enter here."""
        found: Array = self.token_embedding[token_ids]
        return found

    def run(
        self,
        blocks: "Transformer",
        x: Float[Array, "t n d"],
        deep_prompts: Float[Array, "deep #t p d"] | None,
        options: TextOptions,
        valid: Bool[Array, "t n"] | None = None,
    ) -> Float[Array, "t n d"]:
        """Returns the tokens before the final norm, with the given options."""
        s = self.sizes
        x, _ = blocks(
            x.astype(s.dtype),
            valid=valid,
            deep_prompts=deep_prompts,
            insert_at=s.num_start_tokens if options.get("insert") else None,
            adapters=options.get("adapters"),
        )
        if (extra := options.get("extra_norm")) is not None:
            x = x.astype(jnp.float32)
            variance = jnp.var(x, axis=-1, keepdims=True)
            x = jax.nn.standardize(x, variance=variance, epsilon=EXTRA_NORM_EPSILON)
            x = x * extra["scale"] + extra["bias"]
        return x

    def check_length(self, embeddings: Float[Array, "t n e"]) -> None:
        """Raises UserError if texts have more tokens than the tower has positions."""
        found, length = embeddings.shape[1], self.sizes.length
        if found > length:
            raise UserError(
                f"The texts have {found} tokens, but the text tower reads {length}. Shorten them."
            )


def tree_of(tower: VisionTower | TextTower) -> Params:
    """Returns names and shapes of a tower's parameters, as nested dicts of `jax.ShapeDtypeStruct`."""
    # All blocks of a tower have the same shapes.
    one = tower.clone(sizes=dataclasses.replace(tower.sizes, depth=1))

    def repeated(tree: Params) -> Params:
        if "encoderblock_0" in tree:
            blocks = range(tower.sizes.depth)
            return {f"encoderblock_{i}": tree["encoderblock_0"] for i in blocks}
        return {k: repeated(v) if isinstance(v, dict) else v for k, v in tree.items()}

    return repeated(_shapes_of(one))


@functools.cache
def _shapes_of(tower: VisionTower | TextTower) -> Params:
    """Traces a tower for `tree_of`.

    One patch or one token is enough: position tables have the size that the fields give, whatever the input.
    """
    inputs = [np.zeros((1, 1), np.int32)] * 2  # a token as id and as padding
    if isinstance(tower, VisionTower):
        patch = tower.sizes.patch_size
        inputs = [np.zeros((1, patch, patch, 3), np.float32)]
    shapes: Params = jax.eval_shape(tower.init, jax.random.key(0), *inputs)["params"]
    return shapes


# The axis of arrays that devices share: outputs of the first layers of attention (whole heads) and of the
# feed-forward, inputs of the last ones, so that a block has two sums over devices (Shoeybi et al. 2019).
_OUT, _IN = {"kernel": 1, "bias": 0}, {"kernel": 0}
SPLIT_AXES = {
    "MultiHeadDotProductAttention_0": {"query": _OUT, "key": _OUT, "value": _OUT, "out": _IN},
    "MlpBlock_0": {"Dense_0": _OUT, "Dense_1": _IN},
    "FFNSwiGluFused_0": {"Dense_0": _OUT, "Dense_1": _OUT, "Dense_2": _IN},
}


def place(params: Params, mesh: Mesh) -> Params:
    """Copies towers to all devices; those along the mesh's axis "model" share each block's weights.

    What they cannot share equally, such as 3 heads on 2 devices, is copied to each.
    """
    if mesh.shape[sharding.MODEL] == 1:
        return sharding.replicate(params, mesh)

    def put(path: tuple[Any, ...], leaf: Array) -> Any:
        module, layer, array = ["", "", "", *(getattr(one, "key", "") for one in path)][-3:]
        axis = SPLIT_AXES.get(module, {}).get(layer, {}).get(array)
        split = axis is not None and leaf.shape[axis] % mesh.shape[sharding.MODEL] == 0
        spec = PartitionSpec(*[None] * (axis or 0), sharding.MODEL) if split else PartitionSpec()
        return sharding.place(leaf, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(put, params)


class Transformer(nn.Module):
    """A tower of pre-LN blocks, without the final norm.

    Attributes:
      activation: a key of `ACTIVATIONS`.
      causal: whether a token sees only those before it.
      overwrite_from: the row from which deep prompts take the place of tokens; None: they go in front of
        the tokens, and their own rows are removed after the block.
    """

    sizes: TowerSizes
    feed_forward: FeedForward = "mlp"
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    causal: bool = False
    overwrite_from: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        valid: Bool[Array, "b n"] | None = None,
        layers: Sequence[int] = (),
        deep_prompts: Float[AnyArray, "deep #b p d"] | None = None,
        insert_at: int | None = None,
        adapters: Adapters | None = None,
        vv_from: int | None = None,
        vv_path: VVPath = "beside",
    ) -> tuple[Float[Array, "b n d"], list[Float[Array, "b n d"]]]:
        """Returns the last block's output, and those of the blocks `layers` (counted from 1).

        Args:
          x: tokens.
          valid: False where a token is padding; None: all valid.
          layers: blocks whose outputs are returned as well, in this order.
          deep_prompts: row j goes into block j+2 (the first block has the prompts of its own input); axis 1
            is 1, or one set per sequence.
          insert_at: the row at which deep prompts are further tokens, which no output contains: row 0 goes into
            the first block, and row j takes its place before block j+1. None: see `overwrite_from`.
          adapters: of the first blocks.
          vv_from, vv_path: see `VisionOptions`. The last output is always that of the ordinary path.

        Raises:
          ValueError: for `vv_from` with deep prompts that are in front of the tokens.
        """
        start, rows = self.overwrite_from, () if deep_prompts is None else deep_prompts
        inserted = slice(0, 0)
        if deep_prompts is not None and insert_at is not None:
            start, rows = insert_at, deep_prompts[1:]
            inserted = slice(start, start + deep_prompts.shape[2])
            x, valid = _insert(x, valid, deep_prompts[0], start)
        if deep_prompts is not None and vv_from is not None and start is None:
            raise ValueError(
                "A block with deep prompts has no value-value stream. Pass deep_prompts or vv_from, not both."
            )
        outputs: dict[int, Array] = {}
        stream = None
        for i in range(self.sizes.depth):
            block = Block(
                sizes=self.sizes,
                feed_forward=self.feed_forward,
                activation=self.activation,
                norm_epsilon=self.norm_epsilon,
                causal=self.causal,
                name=f"encoderblock_{i}",
            )
            through = vv_path if vv_from is not None and i + 1 >= vv_from else "beside"
            if i + 1 == vv_from and vv_path == "beside":
                stream = x  # beside the ordinary tokens, which stay unchanged for the global one
            # Here blocks count from 0: row j is for block j + 1, and the rows may end before the blocks do.
            # No position is added to deep prompts: positions entered x once, before the first block.
            row = rows[i - 1] if 1 <= i <= len(rows) else None
            if row is not None and start is None:
                longer, all_valid = _insert(x, valid, row, 0)
                x = self._run(block, longer, all_valid)[0][:, row.shape[1] :]
            else:
                if row is not None and start is not None:
                    x = x.at[:, start : start + row.shape[1]].set(row.astype(x.dtype))
                x, stream = self._run(block, x, valid, stream, through)
            if adapters is not None and i < len(adapters.kernels):
                x = _adapt(x, adapters.kernels[i], adapters.share)
            outputs[i + 1] = x if stream is None else stream

        def without_inserted(x: Array) -> Array:
            return jnp.concatenate([x[:, : inserted.start], x[:, inserted.stop :]], axis=1)

        found = [x, *(outputs[layer] for layer in layers)]
        if inserted.stop:
            found = [without_inserted(x) for x in found]
        return found[0], found[1:]

    def _run(self, block: Block, *arguments: Any) -> Any:
        """Runs a block; blocks with equal shapes are traced once."""
        if self.is_initializing():  # makes the parameters, in the scope of this module
            return block(*arguments)
        name = str(block.name)
        params = self.variables.get("params", {}).get(name, {})
        with jax.named_scope(name):
            # Without name and parent, all blocks of a tower are one static argument.
            return _run_block(block.clone(parent=None, name=None), params, *arguments)


@functools.partial(jax.jit, static_argnums=(0, 5), inline=True)
def _run_block(
    block: Block,
    params: Params,
    x: Array,
    valid: Array | None,
    stream: Array | None = None,
    path: VVPath = "beside",
) -> Any:
    return block.apply({"params": params}, x, valid, stream, path)


def _insert(
    x: Float[Array, "b n d"],
    valid: Bool[Array, "b n"] | None,
    prompts: Float[AnyArray, "#b p d"],
    at: int,
) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"] | None]:
    """Returns the tokens, and which are valid, with those of `prompts` from row `at` on."""
    b, p = x.shape[0], prompts.shape[1]
    further = jnp.broadcast_to(jnp.asarray(prompts, x.dtype), (b, p, x.shape[2]))
    if valid is not None:
        valid = jnp.concatenate([valid[:, :at], jnp.ones((b, p), bool), valid[:, at:]], axis=1)
    return jnp.concatenate([x[:, :at], further, x[:, at:]], axis=1), valid


def _adapt(
    x: Float[Array, "b n d"], kernel: Float[AnyArray, "d d"], share: Float[ArrayLike, ""]
) -> Float[Array, "b n d"]:
    """Returns (1 - share) x + share y, see `Adapters`."""

    y = nn.leaky_relu(x @ jnp.asarray(kernel, x.dtype))
    norms = [jnp.linalg.norm(jnp.float32(z), axis=-1, keepdims=True) for z in (x, y)]
    adapted: Array = (1 - share) * x + share * (norms[0] / norms[1]) * y
    return adapted.astype(x.dtype)


def encode_tokens(
    tower: Transformer, tokens: Float[Array, "b n d"], options: VisionOptions
) -> tuple[Float[Array, "b n d"], list[Float[Array, "b n d"]]]:
    """Returns the outputs of a vision tower's last block and of `layers`, with the given options."""
    return tower(
        tokens,
        layers=options.get("layers") or (tower.sizes.depth,),
        deep_prompts=options.get("prompts"),
        insert_at=tokens.shape[1],
        adapters=options.get("adapters"),
        vv_from=options.get("vv_from"),
        vv_path=options.get("vv_path", "beside"),
    )
