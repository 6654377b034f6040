"""The small trainable networks of the prompt learners, as functions of plain parameter trees.

A linear layer is {"kernel": [inputs, outputs], "bias": [outputs]}.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.methods.base import AnyArray

Linear = Mapping[str, Float[AnyArray, "..."]]


def init_normal(key: Array, shape: Sequence[int], *, std: float) -> Float[Array, "..."]:
    """Learned tokens, drawn from N(0, std²)."""
    return std * jax.random.normal(key, tuple(shape))


def init_tokens(
    keys: Iterable[Array], shapes: Mapping[str, Sequence[int]], *, std: float
) -> dict[str, Float[Array, "..."]]:
    """Returns learned tokens of several names, drawn from N(0, std²) with one key each."""
    return {
        name: init_normal(one, shape, std=std)
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def init_linear(key: Array, inputs: int, outputs: int) -> Linear:
    """Uniform within 1/sqrt(inputs), kernel and bias alike: PyTorch's default."""
    bound = inputs**-0.5
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel_key, (inputs, outputs), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound),
    }


def linear(params: Linear, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
    """x kernel + bias."""
    return jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"]


def init_bottleneck(key: Array, inputs: int, hidden: int, outputs: int) -> dict[str, Linear]:
    """Two linear layers: {"first", "second"}."""
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
    """second(activation(first(x)))."""
    return linear(params["second"], activation(linear(params["first"], x)))


def layer_norm(params: Linear, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """LayerNorm with {"scale", "bias"} and epsilon 1e-5."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * params["scale"] + params["bias"]


def attend(
    query: Float[Array, "*b n d"],
    key: Float[Array, "*b m d"],
    value: Float[Array, "*b m d"],
    *,
    num_heads: int,
    scale: float,
) -> Float[Array, "*b n d"]:
    """Multi-head softmax attention of projected inputs, the heads next to each other again.

    Args:
      query, key, value: heads are runs of d / num_heads numbers.
      num_heads: divides d.
      scale: of the logits; the usual one is (d / num_heads)**-0.5.
    """
    heads = [x.reshape(*x.shape[:-1], num_heads, -1) for x in (query, key, value)]
    highest = jax.lax.Precision.HIGHEST
    logits = jnp.einsum("...nhk,...mhk->...hnm", heads[0], heads[1], precision=highest)
    weights = jax.nn.softmax(scale * logits, axis=-1)
    mixed = jnp.einsum("...hnm,...mhk->...nhk", weights, heads[2], precision=highest)
    return mixed.reshape(query.shape)


def folded_weights(
    params: Mapping[str, Linear],
    queries: Float[Array, "n d"],
    tokens: Float[Array, "m d"],
    *,
    num_heads: int,
    scale: float,
) -> Float[Array, "h n m"]:
    """What each head of `attend_folded` gives to the tokens; sums to 1 over them."""
    highest = jax.lax.Precision.HIGHEST
    kernel = params["key"]["kernel"].reshape(tokens.shape[-1], num_heads, -1)
    projected = linear(params["query"], queries).reshape(-1, *kernel.shape[1:])
    folded = jnp.einsum("nhk,dhk->hnd", projected, kernel, precision=highest)
    logits = jnp.einsum("hnd,md->hnm", folded, tokens, precision=highest)
    return jax.nn.softmax(scale * logits, axis=-1)


def attend_folded(
    params: Mapping[str, Linear],
    queries: Float[Array, "n d"],
    tokens: Float[Array, "m d"],
    *,
    num_heads: int,
    scale: float,
) -> Float[Array, "n d"]:
    """Multi-head attention of few queries to many tokens, which are key and value at once.

    The key and value kernels meet the few queries and not the many tokens: the same result for a
    fraction of the work. The key's bias adds the same to all logits of a query, which the softmax
    takes out again.

    Args:
      params: the linear layers {"query", "key", "value", "out"}.
      queries, tokens: not yet projected.
      num_heads: divides d.
      scale: of the logits; the usual one is (d / num_heads)**-0.5.
    """
    highest = jax.lax.Precision.HIGHEST
    weights = folded_weights(params, queries, tokens, num_heads=num_heads, scale=scale)
    value = params["value"]["kernel"].reshape(tokens.shape[-1], num_heads, -1)
    mixed = jnp.einsum("hnm,md->hnd", weights, tokens, precision=highest)
    heads = jnp.einsum("hnd,dhk->nhk", mixed, value, precision=highest)
    return linear(params["out"], heads.reshape(queries.shape) + params["value"]["bias"])


def round_to_float16(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The nearest numbers of float16, with the gradient of the identity."""
    # A cast there and back may be taken out by the compiler, and reduce_precision makes zeros of float16's
    # subnormal numbers, which are the multiples of 2^-24 below 2^-14.
    rounded = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    rounded = jnp.where(jnp.abs(x) < 2.0**-14, jnp.round(x * 2.0**24) * 2.0**-24, rounded)
    return x + jax.lax.stop_gradient(rounded - x)


def linear_from_torch(state: Mapping[str, np.ndarray], name: str) -> Linear:
    """A linear layer, or 1x1 convolution, out of a PyTorch state dict."""
    weight = np.asarray(state[f"{name}.weight"])
    return {
        "kernel": weight.reshape(weight.shape[:2]).T,
        "bias": np.asarray(state[f"{name}.bias"]),
    }


def linears_from_torch(
    state: Mapping[str, np.ndarray], prefix: str = "", **names: str
) -> dict[str, Linear]:
    """Returns several layers of a PyTorch state dict: `names` are theirs, behind `prefix`, by ours."""
    return {ours: linear_from_torch(state, f"{prefix}{theirs}") for ours, theirs in names.items()}
