"""Cosines between images and texts, and scores of methods that compare an image with one pair of texts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.backbones.base import Backbone, VisionFeatures
from zsad_jax.methods.base import Scores
from zsad_jax.methods.shared.config import MethodConfig


class Comparison(NamedTuple):
    """Cosines of tokens and patches with their texts (normal, anomalous), and what follows from them.

    Logits are cosines over the temperature, probabilities those of `Scale`.

    Attributes:
      patch_scores: (1 - p_n + p_a) / 2 of the patches, which maps are made of.
    """

    global_cosines: Float[Array, "b *t 2"]
    global_logits: Float[Array, "b *t 2"]
    global_probabilities: Float[Array, "b *t 2"]
    patch_cosines: Float[Array, "b *n 2"]
    patch_probabilities: Float[Array, "b *n 2"]
    patch_scores: Float[Array, "b *n"]


class Scale(NamedTuple):
    """Probabilities of cosines c: softmax(c / temperature), or with a bias sigmoid(c / temperature + bias).

    Attributes:
      renormalized: takes the softmax of the sigmoids, as TIPSomaly's code does over big_vision's SigLIP.
    """

    temperature: float
    bias: float | None = None
    renormalized: bool = False

    def probabilities(self, cosines: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
        """Returns the probabilities of (normal, anomalous)."""
        logits = cosines / self.temperature
        if self.bias is None:
            return jax.nn.softmax(logits, axis=-1)
        each = jax.nn.sigmoid(logits + self.bias)
        return jax.nn.softmax(each, axis=-1) if self.renormalized else each

    def scores(self, probabilities: Float[Array, "*n 2"]) -> Float[Array, "*n"]:
        """Returns (1 - p_n + p_a) / 2, which is p_a where the two add up to 1."""
        normal, anomalous = probabilities[..., 0], probabilities[..., 1]
        return anomalous if self.bias is None else (1 - normal + anomalous) / 2


def scale_of(backbone: Backbone, temperature: float | None) -> Scale:
    """Returns the softmax at a config's `temperature`; None: what the backbone was trained with."""
    if temperature is None:
        return Scale(backbone.temperature, backbone.logit_bias)
    return Scale(temperature)


def normalize(x: Float[Array, "*n d"], *, floor: float = 1e-12) -> Float[Array, "*n d"]:
    """Divides vectors by their L2 norm, or by `floor` where the norm is smaller; float32."""
    x = x.astype(jnp.float32)
    # The maximum is taken of squares, so that a zero vector has a gradient.
    squares = jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), floor**2)
    return x * jax.lax.rsqrt(squares)


def margin(values: Float[Array, "*n 2"], temperature: float) -> Float[Array, "*n"]:
    """Returns (a - n) / temperature of values (n, a): the logit of anomalous less that of normal."""
    return (values[..., 1] - values[..., 0]) / temperature


def cosines(features: Float[Array, "*n d"], text: Float[Array, "*b k d"]) -> Float[Array, "*n k"]:
    """Returns cosines between each image's features and its own k texts; neither has to be normalized.

    Leading axes of the texts are leading axes of the features: [b, k, d] for the texts of each image,
    [b, l, k, d] for those of each image and layer.
    """
    # The axes that the texts do not share become one: [b, l, h, w, d] -> [b, l, h w, d] for [b, l, k, d].
    flat = normalize(features).reshape(*text.shape[:-2], -1, features.shape[-1])
    # Full precision, since a small temperature multiplies the errors of an accelerator's default.
    highest = jax.lax.Precision.HIGHEST
    values = jnp.einsum("...nd,...kd->...nk", flat, normalize(text), precision=highest)
    return values.reshape(*features.shape[:-1], text.shape[-2])


def same_for_each(x: Float[Array, "*n"], count: int) -> Float[Array, "c *n"]:
    """Returns the same text features for each of several categories or images."""
    return jnp.broadcast_to(x, (count, *x.shape))


def compare(
    tokens: Float[Array, "b *t d"],
    patches: Float[Array, "b *n d"],
    image_text: Float[Array, "b 2 d"],
    patch_text: Float[Array, "*b 2 d"],
    scale: Scale,
) -> Comparison:
    """Returns the cosines of tokens and patches, and the probabilities of (normal, anomalous).

    p(x) = softmax([cos(x, g_n), cos(x, g_a)] / tau) for a token or patch x, its texts g_n and g_a, and the
    temperature tau, or what else the scale says.
    """
    image, pixels = cosines(tokens, image_text), cosines(patches, patch_text)
    probabilities = scale.probabilities(pixels)
    return Comparison(
        global_cosines=image,
        global_logits=image / scale.temperature,
        global_probabilities=scale.probabilities(image),
        patch_cosines=pixels,
        patch_probabilities=probabilities,
        patch_scores=scale.scores(probabilities),
    )


def pair_comparer(
    backbone: Backbone, config: MethodConfig
) -> Callable[[Float[Array, "b 2 d"], VisionFeatures], Comparison]:
    """Returns a function (texts of each image, features) -> what `compare` returns."""
    scale = scale_of(backbone, config.temperature)

    def compare_pair(text: Float[Array, "b 2 d"], features: VisionFeatures) -> Comparison:
        tokens = features.global_tokens[:, config.global_token]
        return compare(tokens, features.patches, text, text, scale)

    return compare_pair


def pair_scores(compared: Comparison, **extras: Array) -> Scores:
    """Returns the probability of "anomalous", with a patch channel per layer.

    The extras of the scores are the given ones and the fields of the comparison.

    The image score is p_a(f) of the global token f; the map will be A (sum_l s(z_l)) Bᵀ of the patches z_l of
    layer l, with s = (1 - p_n + p_a) / 2.
    """
    return Scores(
        image={"global": compared.global_probabilities[:, 1]},
        patches=jnp.moveaxis(compared.patch_scores, 1, -1),
        extras=compared._asdict() | extras,
    )
