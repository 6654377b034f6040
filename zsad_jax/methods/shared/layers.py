"""Small trainable networks of the prompt learners, as functions of plain parameter trees.

A linear layer is {"kernel": [inputs, outputs], "bias": [outputs]}.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.backbones.base import AnyArray, Backbone
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.utils.errors import UserError

Linear = Mapping[str, Float[AnyArray, "..."]]


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


def linear(params: Linear, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
    """Returns x kernel + bias."""
    # Full precision costs little in layers this small; an accelerator's default would round both factors.
    return jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"]


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


def check_joint_heads(backbone: Backbone, key: str, heads: int) -> None:
    """Raises UserError if the attention heads of a config key do not divide the joint width."""
    if backbone.embed_dim % heads:
        raise UserError(
            f"Config key '{key}' is {heads}, which does not divide the {backbone.embed_dim} numbers of an"
            f" embedding of {backbone.name}. Use a divisor."
        )


def attend_folded(
    params: Mapping[str, Linear],
    queries: Float[Array, "n d"],
    tokens: Float[Array, "m d"],
    *,
    num_heads: int,
    scale: float,
) -> tuple[Float[Array, "n d"], Float[Array, "h n m"]]:
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
    return linear(params["out"], heads.reshape(queries.shape) + params["value"]["bias"]), weights


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


def linears_from_torch(state: Arrays, prefix: str = "", **names: str) -> dict[str, Linear]:
    """Reads several layers; `names` maps our names to those in the state dict, without the prefix."""
    return {ours: linear_from_torch(state, f"{prefix}{theirs}") for ours, theirs in names.items()}
