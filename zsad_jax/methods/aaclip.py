"""AA-CLIP (arXiv 2503.06661): residual adapters, first of the text tower, then of the vision tower.

The first stage separates the texts of normal and anomalous objects, on fixed features of value-value attention.
The second one trains the vision tower's adapters and heads on the resulting texts, with changed images.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import (
    Adapters,
    AnyArray,
    Backbone,
    Params,
    TextOptions,
    VisionFeatures,
    VisionOptions,
)
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.methods.base import Batch, Loss, Method, Scores, Stage, grouped, score_fn, vision_side
from zsad_jax.methods.shared import anomaly_map, augmentation, losses, prompts
from zsad_jax.methods.shared.augmentation import Image, Mask
from zsad_jax.methods.shared.config import (
    FOUR_LAYERS,
    TEXT_DEPTH,
    TRAINING,
    VISION_DEPTH,
    Fields,
    OpenClipConfig,
    Recipe,
    scale_block,
)
from zsad_jax.methods.shared.scaling import ImageScores, scale_over_category
from zsad_jax.methods.shared.similarity import margin, normalize
from zsad_jax.utils.config import config_from, within
from zsad_jax.utils.errors import UserError

# Of the Gaussian that smooths the scores of patches, in patches.
GAUSSIANS: dict[str, dict[str, Any]] = {
    "industrial": {"sigma": 1.0, "radius": 3},
    "medical": {"sigma": 1.5, "radius": 4},
}
HIGHEST = jax.lax.Precision.HIGHEST
VISION = "image_adapters", "patch_heads", "image_head"  # parameters of the second stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class AACLIPConfig(prompts.SentencesConfig, OpenClipConfig):
    """Options of AA-CLIP; the defaults are published ones, except for `vv_axis` and `text_augment`.

    Attributes:
      text_adapters, image_adapters: number of the first blocks of a tower with adapters; scaled to its depth.
      adapter_share: share of an adapter in the output of its block.
      relu_proj: the heads of the vision tower end with a leaky ReLU.
      vv_from: first block of the first stage's value-value attention; None: ordinary attention.
      vv_axis: the first stage's value-value attention is over the patches of an image, or, as in the published
        code, over the images of the batch at each position, those that pad the last batch included; then
        features of the first stage cannot be stored.
      stage1_layers: the first stage learns from the last layer (the code), or from all of them (the paper).
      orthogonality: square of the batch's mean cosine of the two texts (the code), or mean square (the paper).
      orthogonality_weight: weight of the orthogonality in the loss of the first stage.
      text_epochs, text_batch_size: epochs and batch size of the first stage, at a constant rate; those of the
        training config are for the second one.
      augment: probability of each of rotation, shift and two flips of an image in the second stage.
      text_augment: the same in the first stage, 0.5 in the published code; then its features cannot be stored.
      color: probability of each of other brightness, contrast and saturation in the second stage.
      domain: which Gaussian smooths the scores, and whether the image score is the largest value of the map
        ("medical") or its mean with the score of the image ("industrial").
      normalize: maps and image scores of a category are scaled to [0, 1]. Images alone are not scaled.
    """

    name: ClassVar[str] = "aaclip"
    title: ClassVar[str] = "AA-CLIP"
    recipe: ClassVar[Recipe] = Recipe(
        training=TRAINING
        | {"epochs": 20, "batch_size": 2, "learning_rate": 5e-4}
        | {"learning_rates": {"text": 1e-5}, "milestones": (16_000, 32_000)},
        naming="aaclip",
        method_for={
            key: {"domain": "medical"} for key, one in DATASETS.items() if one.domain == "medical"
        },
    )
    scoring_only: ClassVar[tuple[str, ...]] = ("domain", "normalize")
    training_only: ClassVar[tuple[str, ...]] = (
        *("vv_from", "vv_axis", "stage1_layers", "orthogonality", "orthogonality_weight"),
        *("text_epochs", "text_batch_size", "augment", "color", "text_augment"),
    )
    sigma: ClassVar[float] = 0.0  # type: ignore[misc]
    init_std: ClassVar[float] = 0.0  # type: ignore[misc]

    normal_states: tuple[str, ...] = prompts.texts("{}, a {}, the {}")
    abnormal_states: tuple[str, ...] = prompts.texts(
        "a damaged {}, a broken {}, a {} with flaw, a {} with defect, a {} with damage"
    )
    templates: tuple[str, ...] = prompts.texts("{}., a photo of {}.")
    text_adapters: int = within(3, 1, TEXT_DEPTH)
    image_adapters: int = within(6, 1, VISION_DEPTH)
    adapter_share: float = within(0.1, 0, 1)
    relu_proj: bool = False
    feature_layers: tuple[int, ...] = FOUR_LAYERS
    vv_from: int | None = within(6, 1, VISION_DEPTH)
    vv_axis: Literal["token", "batch"] = "token"
    stage1_layers: Literal["last", "all"] = "last"
    orthogonality: Literal["batch", "image"] = "batch"
    orthogonality_weight: float = within(0.1, 0)
    text_epochs: int = within(5, 1)
    text_batch_size: int = within(16, 1)
    augment: float = within(0.5, 0, 1)
    text_augment: float = within(0.0, 0, 1)
    color: float = within(0.7, 0, 1)
    domain: Literal["industrial", "medical"] = "industrial"
    normalize: Literal["category", "none"] = "category"
    temperature: float = within(0.01, 1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vv_from is None:
            self.reject_unused("without vv_from", "vv_axis")
        if not self.orthogonality_weight:
            self.reject_unused("without orthogonality_weight", "orthogonality")


def aaclip(backbone: Backbone, config: AACLIPConfig | Fields | None = None) -> Method:
    """Returns AA-CLIP over a backbone with a text side.

    Its params are kernels without biases: {"text_adapters" [k, d, d], "text_head"} in the group "text", and
    {"image_adapters" [k, d, d], "patch_heads" [layers, d, e], "image_head"} in the group "vision". Its image
    scores are "global" of the mean of the patches, "map", the largest value of the map, and "fused", that of
    `config.domain`. Its extra is "text_features".

    Raises:
      UserError: for an unknown key, a bad value, or one that the backbone does not support.
    """
    config = config_from(AACLIPConfig, config)
    backbone = backbone.in_form(config.tower)
    text_side = backbone.need_text()
    depth, count = backbone.vision_depth, len(config.feature_layers)
    layers = config.layers_of(depth)
    surgery: VisionOptions = {
        "layers": layers[-1:] if config.stage1_layers == "last" else layers,
        "vv_from": config.vv_from and scale_block(config.vv_from, depth),
        "vv_path": "through" if config.vv_axis == "token" else "through_batch",
    }

    def init(key: Array, frozen: Params) -> Params:
        """Returns kernels from Xavier's uniform distribution."""
        blocks = scale_block(config.text_adapters, text_side.depth, of=TEXT_DEPTH)
        vision, text, joint = backbone.vision_width, text_side.width, backbone.embed_dim
        shapes: dict[str, tuple[int, ...]] = {
            "text_adapters": (blocks, text, text),
            "text_head": (text, joint),
            "image_adapters": (scale_block(config.image_adapters, depth), vision, vision),
            "patch_heads": (count, vision, joint),
            "image_head": (vision, joint),
        }
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.nn.initializers.glorot_uniform(batch_axis=range(len(shape) - 2))(one, shape)
            for one, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def features(frozen: Params, params: Params, images: Array) -> VisionFeatures:
        """Returns patches of the tower with adapters, through its final norm."""
        adapters = Adapters(params["image_adapters"], config.adapter_share)
        options: VisionOptions = {"layers": layers, "project": False, "adapters": adapters}
        return backbone.encode_image(frozen, images, **options)

    def fixed_features(
        frozen: Params, params: Params, images: Array
    ) -> Float[Array, "b layers h w d"]:
        """Returns unit-norm patches of value-value attention plus the unit-norm token of ordinary attention."""
        found = backbone.encode_image(frozen, images, cls_norm=config.cls_norm)
        token = normalize(found.global_tokens[:, config.global_token])
        patches = backbone.encode_image(frozen, images, **surgery).patches
        return normalize(patches) + token[:, None, None, None]

    def encode_text(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c 2 d"]:
        """Returns the texts of each class, with a head in place of the projection of the text tower."""
        adapters = Adapters(params["text_adapters"], config.adapter_share)

        def encode(token_ids: AnyArray, paddings: AnyArray) -> Array:
            options: TextOptions = {"adapters": adapters, "project": False}
            hidden = text_side.encode_text(frozen, token_ids, paddings, **options)
            return jax.nn.leaky_relu(jnp.matmul(hidden, params["text_head"], precision=HIGHEST))

        family = config.family()
        # Hyphens are part of the published descriptions.
        names = [name.replace("_", " ") for name in class_names]
        ensembles = [sentences for name in names for sentences in family.describe(name)]
        pairs = prompts.encode_ensembles(backbone, frozen, ensembles, encode=encode)
        return pairs.reshape(len(names), 2, -1)

    def project(x: Float[Array, "*b d"], kernel: Float[Array, "*l d e"]) -> Float[Array, "*b e"]:
        """Returns the unit-norm output of a head of the vision tower."""
        y = jnp.matmul(x, kernel, precision=HIGHEST)
        return normalize(jax.nn.leaky_relu(y) if config.relu_proj else y)

    def margins(
        patches: Float[Array, "b layers h w d"], text: Float[Array, "b 2 d"]
    ) -> Float[Array, "b h w layers"]:
        """Returns (x t_a - x t_n) / tau of the patches x."""
        return jnp.moveaxis(margin(_products(patches, text), config.temperature), 1, -1)

    def compare(
        params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> tuple[Float[Array, "b 2"], Float[Array, "b h w layers"]]:
        """Returns (d t_n, d t_a) of the mean d of unit-norm patches of the last layer, and margins."""
        patches = features.patches.astype(jnp.float32)
        whole = project(patches[:, -1], params["image_head"]).mean(axis=(1, 2))
        found = project(patches, params["patch_heads"][:, None])
        return _products(whole, text), margins(found, text)

    def compute(
        frozen: Params, params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> Scores:
        """Returns (1 + d t_a) / 2 of the image, and (1 + margin) / 2 of its patches in each layer."""
        image, patches = compare(params, text, features)
        scores = {"global": (1 + image[:, 1]) / 2}
        return Scores(scores, (1 + patches) / 2, {"text_features": text})

    def fuse(image: ImageScores, peaks: Float[Array, " b"]) -> ImageScores:
        fused = peaks if config.domain == "medical" else (peaks + image["global"]) / 2
        return {"fused": fused, "global": image["global"], "map": peaks}

    def text_loss(
        frozen: Params, params: Params, features: Float[Array, "b layers h w d"], batch: Batch
    ) -> Loss:
        """Returns the segmentation losses of fixed features, and the squared cosine of the two texts."""
        text = encode_text(frozen, params, batch.class_names)[batch.category]
        terms = losses.margin_terms(margins(features, text), batch)
        mean = functools.partial(losses.weighted_mean, weights=batch.valid.astype(jnp.float32))
        alike = (text[:, 0] * text[:, 1]).sum(axis=-1)
        square = mean(alike) ** 2 if config.orthogonality == "batch" else mean(alike**2)
        terms["orthogonality"] = config.orthogonality_weight * square
        return losses.total(terms)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        """Returns the cross-entropy of the image, without a temperature, plus the segmentation losses."""
        assert batch.fixed is not None  # see `Stage`
        image, patches = compare(params, batch.fixed[batch.category], features)
        terms = losses.margin_terms(patches, batch)
        terms["cross_entropy"] = losses.image_cross_entropy(image[:, None], batch)
        return losses.total(terms)

    def import_params(state: Arrays) -> Params:
        """Reads both files of the published code in one: {"text_adapter": …, "image_adapter": …}."""
        for part in ("text_adapter", "image_adapter"):
            if not any(name.startswith(f"{part}.") for name in state):
                raise UserError(
                    f"The file has no {part}. Join text_adapter.pth and image_adapter.pth, for example with"
                    " torch.save(torch.load(TEXT) | torch.load(IMAGE), 'aaclip.pth')."
                )
        shapes = jax.eval_shape(init, jax.random.key(0), None)
        end, texts = "fc.0" if config.relu_proj else "fc", len(shapes["text_adapters"])
        names = {
            "text_adapters": "text_adapter.{}.fc.0",
            "text_head": f"text_adapter.{texts}.fc.0",
            "image_adapters": "image_adapter.layer_adapters.{}.fc.0",
            "patch_heads": f"image_adapter.seg_proj.{{}}.{end}",
            "image_head": f"image_adapter.det_proj.{end}",
        }

        def read(ours: str, theirs: str) -> np.ndarray:
            several = range(len(shapes[ours])) if "{}" in theirs else [0]
            kernels = np.stack([np.asarray(state[f"{theirs.format(i)}.weight"]).T for i in several])
            return kernels if "{}" in theirs else kernels[0]

        return {ours: read(ours, theirs) for ours, theirs in names.items()}

    # What comes from outside of an image is 0 once it is normalized.
    move = functools.partial(augmentation.move, fill=np.array(backbone.preprocess.mean, np.float32))

    def change(key: Array, image: Image, mask: Mask) -> tuple[Image, Mask]:
        color_key, key = jax.random.split(key)
        image = augmentation.recolor(color_key, image, probability=config.color, limit=0.5)
        return move(key, image, mask, probability=config.augment)

    of_texts = functools.partial(move, probability=config.text_augment)
    text_stage = Stage(
        groups=("text",),
        loss=text_loss,
        training={
            "epochs": config.text_epochs,
            "batch_size": config.text_batch_size,
            "milestones": (),
        },
        features=fixed_features,
        features_key=(*surgery.values(), config.cls_norm, config.global_token, backbone.form),
        cacheable=config.vv_axis == "token",
        augment=of_texts if config.text_augment else None,
    )
    changes = config.augment or config.color
    vision_stage = Stage(("vision",), augment=change if changes else None, fixed=encode_text)
    side = vision_side(backbone, config)
    side["features"] = features
    side["anomaly_map"] = functools.partial(anomaly_map.grid_map, **GAUSSIANS[config.domain])
    made = Method(
        init=init,
        prototypes=encode_text,
        score=score_fn(compute),
        loss=loss,
        groups=grouped(text_adapters="text", text_head="text", **dict.fromkeys(VISION, "vision")),
        group_names=("text", "vision"),
        image_scores=("fused", "global", "map"),
        cacheable=False,
        stages=(text_stage, vision_stage),
        import_params=import_params,
        **side,
    )
    scaled = scale_over_category(made, backbone, fuse)
    return scaled if config.normalize == "category" else scaled._replace(across=None)


def _products(x: Float[Array, "b *n d"], text: Float[Array, "b 2 d"]) -> Float[Array, "b *n 2"]:
    """Returns the products of each image's features, which need no unit norm, with its own texts."""
    return jnp.einsum("b...d,bkd->b...k", x, text, precision=HIGHEST)
