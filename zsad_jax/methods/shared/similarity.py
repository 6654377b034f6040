"""Cosines between images and texts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.backbones.base import Backbone


def temperature_of(backbone: Backbone, temperature: float | None) -> float:
    """What a config's `temperature` stands for: None is the backbone's own."""
    return backbone.temperature if temperature is None else temperature


def normalize(x: Float[Array, "*n d"], *, floor: float = 1e-12) -> Float[Array, "*n d"]:
    """Divides vectors by their L2 norm, or by `floor` where the norm is smaller; float32."""
    x = x.astype(jnp.float32)
    # The maximum is taken of squares, so that a zero vector has a gradient.
    squares = jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), floor**2)
    return x * jax.lax.rsqrt(squares)


def cosines(features: Float[Array, "*n d"], text: Float[Array, "*b k d"]) -> Float[Array, "*n k"]:
    """Cosines between each image's features and its own k texts; neither has to be normalised.

    Leading axes of the texts are leading axes of the features: [b, k, d] for the texts of each image,
    [b, l, k, d] for those of each image and layer.
    """
    flat = normalize(features).reshape(*text.shape[:-2], -1, features.shape[-1])
    # Full precision, since a small temperature multiplies the errors of an accelerator's default.
    highest = jax.lax.Precision.HIGHEST
    values = jnp.einsum("...nd,...kd->...nk", flat, normalize(text), precision=highest)
    return values.reshape(*features.shape[:-1], text.shape[-2])


def repeat(x: Float[Array, "*n"], count: int) -> Float[Array, "count *n"]:
    """Returns the same text features for each of several categories or images."""
    return jnp.broadcast_to(x, (count, *x.shape))
