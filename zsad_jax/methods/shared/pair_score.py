"""Scores of methods that compare an image with one pair of texts, normal and anomalous."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.backbones.base import Backbone, VisionFeatures
from zsad_jax.methods.base import Score, Scores, scorer
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.methods.shared.similarity import cosines, temperature_of

IMAGE_SCORES = ("global",)
# Cosines and probabilities of an image's tokens and patches, and what they are made of, by name.
Comparison = dict[str, Array]


def compare(
    tokens: Float[Array, "b *t d"],
    patches: Float[Array, "b *n d"],
    image_text: Float[Array, "b 2 d"],
    patch_text: Float[Array, "*b 2 d"],
    temperature: float,
) -> Comparison:
    """Returns p = softmax(cosine / temperature) over (normal, anomalous) of tokens and patches.

    Its names are "global_cosines", "global_logits", "global_probabilities", "patch_cosines" and
    "patch_probabilities".
    """
    image, pixels = cosines(tokens, image_text), cosines(patches, patch_text)
    return {
        "global_cosines": image,
        "global_logits": image / temperature,
        "global_probabilities": jax.nn.softmax(image / temperature, axis=-1),
        "patch_cosines": pixels,
        "patch_probabilities": jax.nn.softmax(pixels / temperature, axis=-1),
    }


def pair_comparer(
    backbone: Backbone, config: MethodConfig
) -> Callable[[VisionFeatures, Float[Array, "b 2 d"]], Comparison]:
    """Returns a function (features, texts of each image) -> what `compare` returns, and "text_features"."""
    temperature = temperature_of(backbone, config.temperature)

    def compare_pair(features: VisionFeatures, text: Float[Array, "b 2 d"]) -> Comparison:
        tokens = features.global_tokens[:, config.global_token]
        found = compare(tokens, features.patches, text, text, temperature)
        return found | {"text_features": text}

    return compare_pair


def pair_scores(compared: Comparison) -> Scores:
    """Returns the probability of "anomalous", with a patch channel per layer.

    The published map of a layer, (1 - p_normal + p_anomalous) / 2, equals p_anomalous, since the two add up
    to 1.
    """
    return Scores(
        image={"global": compared["global_probabilities"][:, 1]},
        patches=jnp.moveaxis(compared["patch_probabilities"][..., 1], 1, -1),
        extras=compared,
    )


def pair_scorer(
    method: str, compare_pair: Callable[[VisionFeatures, Float[Array, "b 2 d"]], Comparison]
) -> Score:
    """Returns the `score` of a method whose prototypes are one pair of texts per category."""
    return scorer(method, lambda _f, _p, text, features: pair_scores(compare_pair(features, text)))
