"""The score of methods that compare an image with one pair of texts, normal and abnormal."""

from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Params, VisionFeatures
from zsad_jax.methods.base import Scores, check_extras
from zsad_jax.methods.similarity import cosine_softmax, cosines

IMAGE_SCORES = ("global",)
EXTRAS = (
    *("global_cosines", "global_probabilities", "patch_cosines", "patch_probabilities"),
    "text_features",
)


def pair_scorer(
    method: str, texts: Callable[..., Float[Array, "b 2 d"]], *, token: int, temperature: float
) -> Callable[..., Scores]:
    """The `score` of a method whose image score is that of a global token.

    Args:
      method: its name, for messages.
      texts: (frozen, params, prototypes, features, category) -> the (normal, abnormal) text features of
        each image.
      token: the global token, counted from 0.
      temperature: divides the cosine.

    Returns:
      `Method.score`: the probabilities of the abnormal text, where `patches` [b, h, w, layers] has a channel
      per layer; it takes `extras`, names out of `EXTRAS`. The published map of a layer, (1 - p_normal +
      p_abnormal) / 2, is that of p_abnormal alone, since the two add up to 1.
    """

    def score(
        frozen: Params,
        params: Params,
        prototypes: Any,
        features: VisionFeatures,
        category: Int[Array, " b"],
        *,
        extras: Collection[str] = (),
    ) -> Scores:
        check_extras(method, extras, EXTRAS)
        text = texts(frozen, params, prototypes, features, category)
        tokens, patches = features.global_tokens[:, token], features.patches
        image_probabilities = cosine_softmax(tokens, text, temperature)
        patch_probabilities = cosine_softmax(patches, text, temperature)
        computed = {
            "global_cosines": lambda: cosines(tokens, text),
            "global_probabilities": lambda: image_probabilities,
            "patch_cosines": lambda: cosines(patches, text),
            "patch_probabilities": lambda: patch_probabilities,
            "text_features": lambda: text,
        }
        return Scores(
            image={"global": image_probabilities[:, 1]},
            patches=jnp.moveaxis(patch_probabilities[..., 1], 1, -1),
            extras={name: computed[name]() for name in extras},
        )

    return score


def texts_of_category(
    frozen: Params,
    params: Params,
    prototypes: Float[Array, "c 2 d"],
    features: VisionFeatures,
    category: Int[Array, " b"],
) -> Float[Array, "b 2 d"]:
    """The texts of methods that no image changes: those of its category."""
    del frozen, params, features
    return prototypes[category]
