"""APRIL-GAN (arXiv 2305.17382): a linear layer for the patches of each block, compared with fixed sentences.

Given normal reference images, the distances of patches to theirs are added (the few-shot track of the paper).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.methods.base import (
    Batch,
    Category,
    Loss,
    Method,
    Scores,
    Stage,
    grouped,
    score_fn,
    vision_side,
)
from zsad_jax.methods.shared import anomaly_map, layers, losses, prompts
from zsad_jax.methods.shared.config import (
    FOUR_LAYERS,
    MAX_SIGMA,
    TRAINING,
    Fields,
    OpenClipConfig,
    Recipe,
)
from zsad_jax.methods.shared.learner import without_prefix
from zsad_jax.methods.shared.nearest import distances, patch_rows
from zsad_jax.methods.shared.similarity import cosines, margin
from zsad_jax.utils.config import config_from, within

# In the published order.
TEMPLATES = prompts.texts(
    "a bad photo of a {}., a low resolution photo of the {}., a bad photo of the {}.,"
    " a cropped photo of the {}., a bright photo of a {}., a dark photo of the {}., a photo of my {}.,"
    " a photo of the cool {}., a close-up photo of a {}., a black and white photo of the {}.,"
    " a bright photo of the {}., a cropped photo of a {}., a jpeg corrupted photo of a {}.,"
    " a blurry photo of the {}., a photo of the {}., a good photo of the {}., a photo of one {}.,"
    " a close-up photo of the {}., a photo of a {}., a low resolution photo of a {}.,"
    " a photo of a large {}., a blurry photo of a {}., a jpeg corrupted photo of the {}.,"
    " a good photo of a {}., a photo of the small {}., a photo of the large {}.,"
    " a black and white photo of a {}., a dark photo of a {}., a photo of a cool {}.,"
    " a photo of a small {}., there is a {} in the scene., there is the {} in the scene.,"
    " this is a {} in the scene., this is the {} in the scene., this is one {} in the scene."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AprilGANConfig(prompts.SentencesConfig, OpenClipConfig):
    """Options of APRIL-GAN; the defaults are those of the published numbers.

    Attributes:
      mosaic: probability that a training image becomes a mosaic of four images of its category.
      temperature: divides the cosines.
    """

    name: ClassVar[str] = "aprilgan"
    title: ClassVar[str] = "APRIL-GAN"
    recipe: ClassVar[Recipe] = Recipe(
        training=TRAINING | {"epochs": 3},
        trained_on={"visa": {"method": {"mosaic": 0.0}, "training": {"epochs": 15}}},
    )
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma", "cls_norm")
    training_only: ClassVar[tuple[str, ...]] = ("mosaic",)
    vv_from: ClassVar[None] = None  # type: ignore[misc]
    init_std: ClassVar[float] = 0.0  # type: ignore[misc]

    templates: tuple[str, ...] = TEMPLATES
    feature_layers: tuple[int, ...] = FOUR_LAYERS
    mosaic: float = within(0.2, 0, 1)
    sigma: float = within(0.0, 0, MAX_SIGMA)
    temperature: float = within(0.01, 1e-6)


def aprilgan(backbone: Backbone, config: AprilGANConfig | Fields | None = None) -> Method:
    """Returns APRIL-GAN over a backbone whose images and texts share a space.

    Its params are {"layers": a stack of linear layers, one for each of the feature layers}. Its patch channels
    are one margin for each of them and, with references, one distance each. Its extra is "text_features".

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(AprilGANConfig, config)
    backbone = backbone.in_form(config.tower)
    count = len(config.feature_layers)

    def init(key: Array, frozen: Params) -> Params:
        widths = backbone.vision_width, backbone.embed_dim
        return {"layers": layers.init_linears(key, count, *widths)}

    def encode_text(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c 2 d"]:
        return prompts.encode_pairs(backbone, frozen, config.family(), class_names)

    def prototypes(
        frozen: Params,
        params: Params,
        class_names: Sequence[str],
        references: VisionFeatures | None = None,
    ) -> dict[str, Any]:
        """Returns "text", and with references the "banks" of patches of each layer."""
        text = encode_text(frozen, params, class_names)
        if references is None:
            return {"text": text}
        rows = patch_rows(references.patches, "cosine")  # [category, image, layer, n, d]
        return {"text": text, "banks": jnp.moveaxis(rows, 2, 0)}

    def margins(
        params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> Float[Array, "b h w layers"]:
        """Returns (cos(W_l x_l, t_a) - cos(W_l x_l, t_n)) / tau of the patches x_l of each layer l."""
        projected = layers.linear_layers(params["layers"], features.patches)
        values = jnp.moveaxis(cosines(projected, text), 1, -2)
        return margin(values, config.temperature)

    def compute(
        frozen: Params,
        params: Params,
        compared: tuple[dict[str, Any], Category],
        features: VisionFeatures,
    ) -> Scores:
        """Returns the probability of "anomalous" of the global token, which needs no parameters.

        With references, the image score is its mean with half the largest distance of a patch, the mean over
        layers of 1 - cosine to the nearest reference patch. The published code rescales the largest values of
        the maps of a category to [0, 1] instead, for which it needs all of its images.
        """
        known, category = compared
        text = known["text"][category]
        tokens = features.global_tokens[:, config.global_token]
        image = jax.nn.sigmoid(margin(cosines(tokens, text), config.temperature))
        patches = margins(params, text, features)
        if "banks" in known:
            found = [
                distances(bank, category, features.patches[:, i])
                for i, bank in enumerate(known["banks"])
            ]
            distance = jnp.stack(found, axis=-1)
            image = (image + distance.mean(axis=-1).max(axis=(1, 2)) / 2) / 2
            patches = jnp.concatenate([patches, distance], axis=-1)
        return Scores({"global": image}, patches, {"text_features": text})

    def make_map(patches: Float[Array, "b h w c"], size: anomaly_map.Size) -> Float[Array, "b H W"]:
        """Returns sum_l sigmoid(U m_l) of margins m_l, up-sampled by U.

        With the distances d_l it is a third of sum_l sigmoid(U m_l) + sum_l U d_l, for the same range.
        """
        pixels = anomaly_map.margin_map(patches[..., :count], size, sigma=config.sigma)
        if patches.shape[-1] == count:
            return pixels
        near = patches[..., count:].sum(axis=-1, keepdims=True)
        distance = anomaly_map.upsample(near, size, sigma=config.sigma, align_corners=True)
        return (pixels + distance[..., 0]) / 3

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        """Returns the sum of focal and Dice losses over layers; the class token is not trained on."""
        assert batch.fixed is not None  # see `Stage`
        terms = losses.margin_terms(margins(params, batch.fixed[batch.category], features), batch)
        terms.pop("dice_normal")
        return losses.total(terms)

    def import_params(state: Arrays) -> Params:
        state = without_prefix(state, "trainable_linearlayer")
        return {"layers": layers.stack_from_torch(state, (f"fc.{i}" for i in range(count)))}

    side = vision_side(backbone, config, patch_norm=False)
    side["anomaly_map"] = make_map
    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute, whole=True),
        score_range=(0.0, 1.0),
        loss=loss,
        groups=grouped(layers="layers"),
        group_names=("layers",),
        stages=(Stage(mosaic=config.mosaic, fixed=encode_text),),
        references="optional",
        import_params=import_params,
        **side,
    )
