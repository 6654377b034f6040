"""The pathway of TPS: shunt text features adapted to an image's patches and to the global text features.

Its parameters are {"norms": {name: layer norm}, "attentions": {name: linear layers}, "mlp": two linear
layers}.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.backbones.transformer import ACTIVATIONS
from zsad_jax.methods.layers import (
    Linear,
    attend,
    attend_folded,
    bottleneck,
    init_bottleneck,
    init_linear,
    layer_norm,
    linear,
    linear_from_torch,
)

MLP_FACTOR = 4  # hidden width of the feed-forward part, in widths of the joint space
# The layers by name, and what they are called in the authors' module.
NORMS = {"shunt": "ln_0", "global": "ln_1", "patches": "ln_4", "between": "ln_2", "mlp": "ln_3"}
ATTENTIONS = {"to_patches": "text_attention", "to_global": "cross_attention"}

Pathway = dict[str, Any]


def init_pathway(key: Array, width: int, *, copies: int | None = None) -> Pathway:
    """A fresh pathway, its parts as PyTorch initialises them.

    Args:
      key: of the random numbers.
      width: of the joint space.
      copies: as many different ones, along a leading axis of every leaf; None: a single one.
    """
    if copies is not None:
        return jax.vmap(functools.partial(init_pathway, width=width))(jax.random.split(key, copies))
    keys = jax.random.split(key, len(ATTENTIONS) + 1)
    norm = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    return {
        "norms": dict.fromkeys(NORMS, norm),
        "attentions": {
            name: _init_attention(one, width)
            for name, one in zip(ATTENTIONS, keys[:-1], strict=True)
        },
        "mlp": init_bottleneck(keys[-1], width, MLP_FACTOR * width, width),
    }


def adapt_texts(
    params: Pathway,
    shunt: Float[Array, "b 2 d"],
    image: Float[Array, "b 2 d"],
    patches: Float[Array, "b l h w d"],
    *,
    num_heads: int,
    shared: bool,
) -> Float[Array, "b l 2 d"]:
    """The text features to compare each layer's patches of each image with, not normalised.

    Args:
      params: of the pathway, or of one for each layer.
      shunt, image: raw text features of the shunt and of the global prompts.
      patches: raw patch features.
      num_heads: of both attentions.
      shared: whether all layers have the same pathway.
    """
    b, layers, h, w, d = patches.shape
    one = functools.partial(apply_pathway, num_heads=num_heads)
    of_layers = jax.vmap(one, in_axes=(None if shared else 0, None, None, 0))
    of_images = jax.vmap(of_layers, in_axes=(None, 0, 0, 0))
    return of_images(params, shunt, image, patches.reshape(b, layers, h * w, d))


def apply_pathway(
    params: Pathway,
    shunt: Float[Array, "2 d"],
    image: Float[Array, "2 d"],
    patches: Float[Array, "n d"],
    *,
    num_heads: int,
) -> Float[Array, "2 d"]:
    """The shunt features after a look at one layer's patches of one image, and at the global features.

    Args:
      params: the pathway's.
      shunt, image: raw text features of the shunt and of the global prompts.
      patches: raw patch features.
      num_heads: of both attentions.

    Returns:
      Text features to compare these patches with, not normalised.
    """
    norms, attentions = params["norms"], params["attentions"]
    scale = (shunt.shape[-1] / num_heads) ** -0.5
    x = layer_norm(norms["shunt"], shunt)
    seen = layer_norm(norms["patches"], patches.astype(jnp.float32))
    to_patches = attentions["to_patches"]
    x = x + attend_folded(to_patches, x, seen, num_heads=num_heads, scale=scale)

    x = layer_norm(norms["between"], x)
    to_global = attentions["to_global"]
    key = linear(to_global["key"], layer_norm(norms["global"], image))
    query, value = (linear(to_global[name], x) for name in ("query", "value"))
    mixed = attend(query, key, value, num_heads=num_heads, scale=scale)
    x = x + linear(to_global["out"], mixed)

    hidden = layer_norm(norms["mlp"], x)
    return x + bottleneck(params["mlp"], hidden, activation=ACTIVATIONS["quick_gelu"])


def pathway_from_torch(state: Mapping[str, np.ndarray], prefix: str) -> Pathway:
    """The pathway out of the authors' state dict, without its image branch, which has no effect.

    Args:
      state: arrays by name.
      prefix: in front of the names "ln_0.weight" and so on.

    Raises:
      KeyError: when one is missing.
    """
    return {
        "norms": {
            name: {
                "scale": np.asarray(state[f"{prefix}{theirs}.weight"]),
                "bias": np.asarray(state[f"{prefix}{theirs}.bias"]),
            }
            for name, theirs in NORMS.items()
        },
        "attentions": {
            name: _attention_from_torch(state, f"{prefix}{theirs}")
            for name, theirs in ATTENTIONS.items()
        },
        "mlp": {
            "first": linear_from_torch(state, f"{prefix}text_feed.0"),
            "second": linear_from_torch(state, f"{prefix}text_feed.2"),
        },
    }


def count_unused_branch(width: int) -> int:
    """Numbers in the image branch of the authors' module: an attention, a feed-forward part and a norm."""
    hidden = MLP_FACTOR * width
    return 4 * (width + 1) * width + (width + 1) * hidden + (hidden + 1) * width + 2 * width


def _init_attention(key: Array, width: int) -> dict[str, Linear]:
    """Glorot's uniform range for the three inputs taken as one matrix, zero biases."""
    bound = (6 / (4 * width)) ** 0.5
    *input_keys, out_key = jax.random.split(key, 4)
    inputs = [
        jax.random.uniform(one, (width, width), minval=-bound, maxval=bound) for one in input_keys
    ]
    kernels = [*inputs, init_linear(out_key, width, width)["kernel"]]
    return {
        name: {"kernel": kernel, "bias": jnp.zeros(width)}
        for name, kernel in zip(("query", "key", "value", "out"), kernels, strict=True)
    }


def _attention_from_torch(state: Mapping[str, np.ndarray], name: str) -> dict[str, Linear]:
    """PyTorch's attention, which holds the three input layers as one."""
    kernels = np.split(np.asarray(state[f"{name}.in_proj_weight"]), 3)
    biases = np.split(np.asarray(state[f"{name}.in_proj_bias"]), 3)
    inputs: dict[str, Any] = {
        part: {"kernel": kernel.T, "bias": bias}
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    return inputs | {"out": linear_from_torch(state, f"{name}.out_proj")}
