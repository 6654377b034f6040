"""WinCLIP (arXiv 2303.14814): windows of an image, and the whole image, are compared with sentences on states.

Nothing is learned. Given normal reference images, patches and windows are also compared with theirs (WinCLIP+).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods.base import NOTHING_LEARNED, Category, Method, Scores, score_fn, vision_side
from zsad_jax.methods.shared import prompts
from zsad_jax.methods.shared.config import MAX_SIGMA, Fields, Recipe
from zsad_jax.methods.shared.nearest import distances, patch_rows
from zsad_jax.methods.shared.similarity import cosines, scale_of
from zsad_jax.utils.config import config_from, within

# In the published order, in which one is listed twice, and counts twice.
TEMPLATES = prompts.texts(
    "a cropped photo of the {}., a close-up photo of a {}., a close-up photo of the {}.,"
    " a bright photo of a {}., a bright photo of the {}., a dark photo of the {}., a dark photo of a {}.,"
    " a jpeg corrupted photo of the {}., a jpeg corrupted photo of the {}., a blurry photo of the {}.,"
    " a blurry photo of a {}., a photo of a {}., a photo of the {}., a photo of a small {}.,"
    " a photo of the small {}., a photo of a large {}., a photo of the large {}.,"
    " a photo of the {} for visual inspection., a photo of a {} for visual inspection.,"
    " a photo of the {} for anomaly detection., a photo of a {} for anomaly detection."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WinCLIPConfig(prompts.SentencesConfig):
    """Options of WinCLIP; the defaults are those of the published numbers.

    Attributes:
      windows: sides of the windows, in patches.
      full_image: whether the score of the whole image is a part of the map, as that of a window on all patches.
      feature_layers: vision blocks whose patch tokens are compared with those of references.
    """

    name: ClassVar[str] = "winclip"
    title: ClassVar[str] = "WinCLIP"
    recipe: ClassVar[Recipe] = Recipe(backbone={"name": "clip-vit-b16-plus-240"})
    vv_from: ClassVar[None] = None  # type: ignore[misc]
    init_std: ClassVar[float] = 0.0  # type: ignore[misc]

    abnormal_states: tuple[str, ...] = prompts.texts(
        "damaged {}, {} with flaw, {} with defect, {} with damage"
    )
    templates: tuple[str, ...] = TEMPLATES
    windows: tuple[int, ...] = (2, 3)
    full_image: bool = True
    sigma: float = within(0.0, 0, MAX_SIGMA)


def winclip(backbone: Backbone, config: WinCLIPConfig | Fields | None = None) -> Method:
    """Returns WinCLIP over a backbone whose images and texts share a space.

    Its params are {}; its maps have one channel; its extras are "text_features" and "scales", the map of each
    window size. For the scores see `compute`.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(WinCLIPConfig, config)
    grid = backbone.preprocess.image_size // backbone.patch_size
    fits = bool(config.windows) and all(1 <= size <= grid for size in config.windows)
    images = f"images of {backbone.preprocess.image_size} pixels have {grid} x {grid} patches"
    config.require("windows", fits, f"at least one size between 1 and {grid}: {images}")
    scale = scale_of(backbone, config.temperature)

    def scales(features: VisionFeatures) -> list[tuple[int, Float[Array, "*b rows columns d"]]]:
        """Returns (size, tokens) of the patches of each layer, as windows of one patch, and of windows."""
        layers = [(1, features.patches[..., i, :, :, :]) for i in range(len(config.feature_layers))]
        windows = [tokens[..., config.global_token, :] for tokens in features.windows]
        return [*layers, *zip(config.windows, windows, strict=True)]

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> dict[str, Any]:
        """Returns the two texts of each class, and unit-norm tokens of the references for each scale."""
        # The features of sentences are averaged as they are.
        family = config.family(unit=False)
        text = prompts.encode_pairs(backbone, frozen, family, class_names)
        if references is None:
            return {"text": text}
        banks = [patch_rows(x, "cosine") for _, x in scales(references)]
        return {"text": text, "banks": banks}

    def compute(
        frozen: Params,
        params: Params,
        compared: tuple[dict[str, Any], Category],
        features: VisionFeatures,
    ) -> Scores:
        """Returns scores by probabilities of "anomalous", and by distances to references where there are any.

        p(z) is the anomaly score of `Scale` for the token z of a window or of the image. In the map of a
        window size, a patch has the harmonic mean of p over the windows that contain it. The map is the
        harmonic mean of these maps and of the image score, p of the image.

        With references, a(z) = min_r (1 - cos(z, r)) / 2 over their tokens r of the same size takes the place
        of p, also for patches, and A is the arithmetic mean of the maps. The map is the mean of the above and A
        (the paper has their sum, which is twice as large), the image score that of the above and max A.
        """
        references, category = compared
        text = references["text"][category]

        def p(tokens: Float[Array, "b *n d"]) -> Float[Array, "b *n"]:
            return scale.scores(scale.probabilities(cosines(tokens, text)))

        image = p(features.global_tokens[:, config.global_token])
        tokens = scales(features)
        windows = tokens[len(config.feature_layers) :]
        maps = jnp.stack([window_map(p(x), size) for size, x in windows])
        extras = {"text_features": text, "scales": jnp.moveaxis(maps, 0, 1)}
        if config.full_image:
            whole = jnp.broadcast_to(image[:, None, None], maps.shape[1:])
            maps = jnp.concatenate([maps, whole[None]])
        patches = len(maps) / (1 / maps).sum(axis=0)  # the harmonic mean; 0 if a value is 0
        if "banks" in references:
            found = []
            for (size, x), bank in zip(tokens, references["banks"], strict=True):
                found.append(window_map(distances(bank, category, x) / 2, size))
            association = jnp.stack(found).mean(axis=0)
            patches = (patches + association) / 2
            image = (image + association.max(axis=(1, 2))) / 2
        return Scores({"global": image}, patches[..., None], extras)

    return Method(
        prototypes=prototypes,
        score=score_fn(compute, whole=True),
        score_range=(0.0, 1.0),
        references="optional",
        **NOTHING_LEARNED,
        **vision_side(backbone, config, num_maps=1, patch_norm=False, windows=config.windows),
    )


def window_map(scores: Float[Array, "b rows columns"], size: int) -> Float[Array, "b h w"]:
    """Returns for each patch the harmonic mean of the scores of the windows that contain it; 0 if one is 0.

    The windows are all those of size x size patches, by their positions.
    """
    around = [(0, 0), (size - 1, size - 1), (size - 1, size - 1)]
    window = (1, size, size)
    total = jax.lax.reduce_window(1 / scores, 0.0, jax.lax.add, window, (1, 1, 1), around)
    # The number of windows over each row and column, on the host: XLA folds such constants slowly.
    counts = [np.convolve(np.ones(n), np.ones(size)).astype(np.float32) for n in scores.shape[1:]]
    return jnp.asarray(np.outer(*counts) / total)
