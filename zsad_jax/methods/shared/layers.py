"""Small trainable networks of the prompt learners, as functions of plain parameter trees.

A linear layer is {"kernel": [inputs, outputs], "bias": [outputs]}.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.backbones.base import AnyArray
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.methods.shared.similarity import normalize
from zsad_jax.utils.errors import UserError

Linear = Mapping[str, Float[AnyArray, "..."]]
# Projections of the perception attention, by the names in the code of VCP-CLIP and ViP2-CLIP.
PERCEPTION = {
    "query": "q_proj_pre",
    "key": "k_proj_pre_1",
    "value": "v_proj_pre_1",
    "out": "proj_post_t",
}


def init_tokens(
    keys: Iterable[Array], shapes: Mapping[str, Sequence[int]], *, std: float
) -> dict[str, Float[Array, "..."]]:
    """Returns learned tokens of several names, drawn from N(0, std²) with one key each."""
    return {
        name: std * jax.random.normal(one, tuple(shape))
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def init_linear(key: Array, inputs: int, outputs: int) -> Linear:
    """Returns kernel and bias, uniform within 1/sqrt(inputs): PyTorch's default."""
    bound = inputs**-0.5
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel_key, (inputs, outputs), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound),
    }


def init_linears(key: Array, count: int, inputs: int, outputs: int) -> Linear:
    """Returns a stack of linear layers: {"kernel": [count, inputs, outputs], "bias": [count, outputs]}."""
    init = functools.partial(init_linear, inputs=inputs, outputs=outputs)
    return jax.vmap(init)(jax.random.split(key, count))


def linear(params: Linear, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
    """Returns x kernel + bias."""
    # Full precision costs little in layers this small; an accelerator's default would round both factors.
    return jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"]


def linear_layers(
    params: Linear, patches: Float[Array, "b layers h w d"]
) -> Float[Array, "b layers h w e"]:
    """Returns the patches of each layer after its own linear layer of a stack, in float32."""
    return jax.vmap(linear, in_axes=(0, 1), out_axes=1)(params, patches.astype(jnp.float32))


def init_bottleneck(key: Array, inputs: int, hidden: int, outputs: int) -> dict[str, Linear]:
    """Returns two linear layers: {"first", "second"}."""
    first, second = jax.random.split(key)
    return {
        "first": init_linear(first, inputs, hidden),
        "second": init_linear(second, hidden, outputs),
    }


def bottleneck(
    params: Mapping[str, Linear],
    x: Float[Array, "*n d"],
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Float[Array, "*n e"]:
    """Returns second(activation(first(x)))."""
    return linear(params["second"], activation(linear(params["first"], x)))


def check_heads(key: str, heads: int, width: int, vector: str) -> None:
    """Raises UserError if the attention heads of a config key do not divide the width of a vector."""
    if width % heads:
        raise UserError(
            f"Config key '{key}' is {heads}, which does not divide the {width} numbers of {vector}. Use a"
            " divisor."
        )


def attend_folded(
    params: Mapping[str, Linear],
    queries: Float[Array, "n c"],
    tokens: Float[Array, "m d"],
    *,
    num_heads: int,
    scale: float,
) -> tuple[Float[Array, "n e"], Float[Array, "h n m"]]:
    """Returns multi-head attention of few queries to many tokens, both keys and values, and its weights.

    The key and value kernels are applied to the few queries instead of the many tokens: q (t W_k)ᵀ equals
    (q W_kᵀ) tᵀ, and a (t W_v) equals (a t) W_v, for queries q, tokens t and weights a, at a fraction of the
    cost. The key's bias adds the same number to all logits of a query, and cancels
    in the softmax.

    Args:
      params: the linear layers {"query", "key", "value", "out"}.
      queries, tokens: not yet projected.
      num_heads: divides d.
      scale: of the logits; the usual one is (d / num_heads)**-0.5.
    """
    highest = jax.lax.Precision.HIGHEST
    key, value = (
        params[name]["kernel"].reshape(tokens.shape[-1], num_heads, -1) for name in ("key", "value")
    )
    projected = linear(params["query"], queries).reshape(-1, *key.shape[1:])
    # Axes: queries n, tokens m, heads h, numbers of a head k, width d.
    folded = jnp.einsum("nhk,dhk->hnd", projected, key, precision=highest)
    logits = jnp.einsum("hnd,md->hnm", folded, tokens, precision=highest)
    weights = jax.nn.softmax(scale * logits, axis=-1)
    mixed = jnp.einsum("hnm,md->hnd", weights, tokens, precision=highest)
    heads = jnp.einsum("hnd,dhk->nhk", mixed, value, precision=highest)
    # The weights of a query add up to 1, so the bias of the values is added once, after mixing.
    return linear(params["out"], heads.reshape(len(queries), -1) + params["value"]["bias"]), weights


def init_perception(key: Array, queries: int, tokens: int) -> dict[str, Linear]:
    """Returns the projections of the perception attention, whose output is as wide as the tokens."""
    return {
        name: init_linear(one, queries if name == "query" else tokens, tokens)
        for one, name in zip(jax.random.split(key, 4), PERCEPTION, strict=True)
    }


def perceive(
    params: Mapping[str, Linear],
    text: Float[Array, "b 2 c"],
    patches: Float[Array, "b layers h w d"],
    *,
    num_heads: int,
) -> tuple[Float[Array, "b layers 2 d"], Float[Array, "b layers heads 2 n"]]:
    """Returns the perception attention of texts to the normalized patches of each layer, and its weights.

    T_l = (softmax((T W_q)(F_l W_k)ᵀ) F_l W_v) W_o by heads, without the biases, for texts T and patches F_l.
    Like the published code, it does not divide the logits by the root of the heads' width.
    """
    unit = normalize(patches)
    unit = unit.reshape(*unit.shape[:2], -1, unit.shape[-1])
    attend = functools.partial(attend_folded, params, num_heads=num_heads, scale=1.0)
    # Outside: the images. Inside: the layers, which share an image's texts.
    return jax.vmap(jax.vmap(attend, in_axes=(None, 0)))(text, unit)


def round_to_float16(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns the nearest float16 numbers, with the gradient of the identity."""
    # The compiler may remove a cast to float16 and back, and reduce_precision flushes float16's subnormal
    # numbers, the multiples of 2^-24 below 2^-14, to zero.
    rounded = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    rounded = jnp.where(jnp.abs(x) < 2.0**-14, jnp.round(x * 2.0**24) * 2.0**-24, rounded)
    return x + jax.lax.stop_gradient(rounded - x)


def linear_from_torch(state: Arrays, name: str) -> Linear:
    """Reads a linear layer, or 1x1 convolution, from a PyTorch state dict."""
    weight = np.asarray(state[f"{name}.weight"])
    kernel = weight.reshape(weight.shape[:2]).T
    return {"kernel": kernel, "bias": np.asarray(state[f"{name}.bias"])}


def stack_from_torch(state: Arrays, names: Iterable[str]) -> Linear:
    """Reads a stack of linear layers, one for each name."""
    found = [linear_from_torch(state, name) for name in names]
    stack: Linear = jax.tree.map(lambda *x: np.stack(x), *found)
    return stack


def linears_from_torch(state: Arrays, prefix: str = "", **names: str) -> dict[str, Linear]:
    """Reads several layers; `names` maps our names to those in the state dict, without the prefix."""
    return {ours: linear_from_torch(state, f"{prefix}{theirs}") for ours, theirs in names.items()}
