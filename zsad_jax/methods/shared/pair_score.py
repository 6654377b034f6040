"""Scores of methods that compare an image with one pair of texts, normal and anomalous."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods.base import Scores, scorer
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.methods.shared.similarity import cosines, temperature_of

IMAGE_SCORES = ("global",)
COMPARED = ("global_cosines", "global_probabilities", "patch_cosines", "patch_probabilities")
EXTRAS = (*COMPARED, "text_features")


def compare(
    tokens: Float[Array, "b *t d"],
    patches: Float[Array, "b *n d"],
    image_text: Float[Array, "b 2 d"],
    patch_text: Float[Array, "*b 2 d"],
    temperature: float,
) -> dict[str, Array]:
    """Returns `COMPARED` and "global_logits": p = softmax(cosine / temperature) over (normal, anomalous)."""
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
) -> Callable[[VisionFeatures, Float[Array, "b 2 d"]], dict[str, Array]]:
    """Returns a function (features, texts of each image) -> `EXTRAS` and "global_logits"."""
    temperature = temperature_of(backbone, config.temperature)

    def compare_pair(features: VisionFeatures, text: Float[Array, "b 2 d"]) -> dict[str, Array]:
        tokens = features.global_tokens[:, config.global_token]
        return {
            **compare(tokens, features.patches, text, text, temperature),
            "text_features": text,
        }

    return compare_pair


def pair_scores(compared: dict[str, Array]) -> Scores:
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
    method: str,
    compare_pair: Callable[..., dict[str, Array]],
    texts: Callable[..., Float[Array, "b 2 d"]] | None = None,
) -> Callable[..., Scores]:
    """Returns the `score` of a method with one pair of texts per image.

    Args:
      method: its name, for messages.
      compare_pair: from `pair_comparer`.
      texts: (frozen, params, prototypes, features, category) -> the texts of each image; None: the
        prototypes [c, 2, d] of its category.
    """

    def compute(
        frozen: Params,
        params: Params,
        prototypes: Any,
        features: VisionFeatures,
        category: Int[Array, " b"],
    ) -> Scores:
        text = (
            prototypes[category]
            if texts is None
            else texts(frozen, params, prototypes, features, category)
        )
        return pair_scores(compare_pair(features, text))

    return scorer(method, EXTRAS, compute)
