"""VCP-CLIP (arXiv 2407.12276): sentences whose class name is replaced by what is seen in the image.

The image's global token conditions learned class tokens (Pre-VCP), and the texts attend to the patches of each
layer (Post-VCP). The map joins the agreement of patches with the texts before and after that attention.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from zsad_jax.backbones.base import Backbone, Params, TextOptions, VisionFeatures
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.methods.base import (
    Batch,
    Loss,
    Method,
    Scores,
    Stage,
    grouped,
    score_fn,
    vision_side,
)
from zsad_jax.methods.shared import anomaly_map, augmentation, layers, losses, prompts
from zsad_jax.methods.shared.config import (
    FOUR_LAYERS,
    MAX_SIGMA,
    TRAINING,
    Fields,
    OpenClipConfig,
    Recipe,
)
from zsad_jax.methods.shared.learner import without_prefix
from zsad_jax.methods.shared.scaling import scale_over_category
from zsad_jax.methods.shared.similarity import cosines, margin, normalize, same_for_each
from zsad_jax.utils.config import config_from, within

# Modules of the learned arrays, by the authors' names.
MODULES = ("trainable_linearlayer", "New_Lan_Embed", "Zero_try")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VCPCLIPConfig(OpenClipConfig):
    """Options of VCP-CLIP; the defaults are those of the published numbers.

    Attributes:
      normal_text, abnormal_text: the sentences; `{}` is where the class tokens are inserted.
      num_class_prompts: r, learned class tokens, which both sentences share.
      pre_vcp: a convolution of the image's global token is added to the class tokens.
      num_deep_prompts: n, tokens that are inserted into each text block; 0: none, and no further norm.
      post_vcp: the texts attend to the patches, which are compared with the result as well; False: the map is
        that of the projected patches.
      post_vcp_heads: of this attention; divides the width of the vision tower.
      alpha: share of the projected patches in the map.
      top_pixels: number of the largest pixels that the image score is the mean of.
      normalize: "category" scales maps and image scores to [0, 1] over the images of a category.
      mosaic: probability that a training image becomes a mosaic of four images of its category.
      mosaic_of: mosaics are made of the anomalous images of a category alone, or of all.
      augment: probability of each change of a training image, see `augmentation.vary`.
      temperature: start of the two learned ones, for the projected patches and those of Post-VCP.
      init_std: factor of the class tokens' truncated normal distribution, which is cut at twice that.
      global_token: index of the one that Pre-VCP uses.
    """

    name: ClassVar[str] = "vcpclip"
    title: ClassVar[str] = "VCP-CLIP"
    needs_joint_text: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(
        seed=333,
        training=TRAINING
        | {"epochs": 10, "batch_size": 32, "learning_rate": 2e-5}
        | {"learning_rates": {"log_scales": 1e-2}},
        trained_on={"visa": {"method": {"mosaic": 0.0}, "training": {"learning_rate": 4e-5}}},
    )
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma", "alpha", "top_pixels", "normalize")
    training_only: ClassVar[tuple[str, ...]] = ("mosaic", "mosaic_of", "augment")
    vv_from: ClassVar[None] = None  # type: ignore[misc]

    normal_text: str = "a photo of a good {}"
    abnormal_text: str = "a photo of a damaged {}"
    num_class_prompts: int = within(2, 1)
    pre_vcp: bool = True
    num_deep_prompts: int = within(1, 0)
    post_vcp: bool = True
    post_vcp_heads: int = within(8, 1)
    alpha: float = within(0.2, 0, 1)
    top_pixels: int = within(2000, 1)
    normalize: Literal["category", "none"] = "category"
    mosaic: float = within(0.2, 0, 1)
    mosaic_of: Literal["anomalous", "all"] = "anomalous"
    augment: float = within(0.5, 0, 1)
    feature_layers: tuple[int, ...] = FOUR_LAYERS
    sigma: float = within(8.0, 0, MAX_SIGMA)
    temperature: float = within(0.07, 1e-6)
    init_std: float = within(1.0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("normal_text", "abnormal_text"):
            fits = getattr(self, key).count("{}") == 1
            self.require(key, fits, "text with one {}, where class tokens are inserted")
        if not self.post_vcp:
            self.reject_unused("without post_vcp", "post_vcp_heads", "alpha")


def vcpclip(backbone: Backbone, config: VCPCLIPConfig | Fields | None = None) -> Method:
    """Returns VCP-CLIP over a backbone whose text tokens are as wide as the joint space.

    Its params are {"query": [r, d], "filter": the convolution, as a linear layer of 3 neighbors, "deep":
    {"tokens": [blocks, n, d], "projection", "norm"}, "layers": a stack of linear layers, one for each of the
    feature layers, "attention": its four projections, "log_scales": {"raw", "new"}}, as far as the config has
    them; the last is a group of its own. Its patch channels are margins of all layers, first of projected
    patches, then of Post-VCP. Its extras are "text_features", and with Post-VCP "layer_text_features" and
    "attention".

    Raises:
      UserError: for an unknown key, a bad value, or one that the backbone does not support.
    """
    config = config_from(VCPCLIPConfig, config)
    backbone = backbone.in_form(config.tower)
    count = len(config.feature_layers)
    if config.post_vcp:
        what = f"a patch of {backbone.name}"
        layers.check_heads("post_vcp_heads", config.post_vcp_heads, backbone.vision_width, what)

    def init(key: Array, frozen: Params) -> Params:
        width, joint = backbone.text_width, backbone.embed_dim
        query, conv, deep, kernel, bias, own, attention = jax.random.split(key, 7)
        shape = (config.num_class_prompts, width)
        start = -jnp.log(config.temperature)
        params: Params = {
            "query": config.init_std * jax.random.truncated_normal(query, -2, 2, shape),
            "layers": layers.init_linears(own, count, backbone.vision_width, joint),
            "log_scales": {"raw": start},
        }
        if config.pre_vcp:
            params["filter"] = layers.init_linear(conv, 3, config.num_class_prompts)
        if config.num_deep_prompts:
            of_blocks = (backbone.text_depth, config.num_deep_prompts, width)
            linear = dict(layers.init_linear(bias, width, width))
            linear["kernel"] = (2 / width) ** 0.5 * jax.random.normal(kernel, (width, width))
            params["deep"] = {
                "tokens": jax.random.uniform(deep, of_blocks, minval=-1, maxval=1),
                "projection": linear,
                "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
            }
        if config.post_vcp:
            params["attention"] = layers.init_perception(attention, joint, backbone.vision_width)
            params["log_scales"]["new"] = start
        return params

    def encode(
        frozen: Params, params: Params, seen: Float[Array, "r d"] | float = 0.0
    ) -> Float[Array, "2 d"]:
        """Returns the unit-norm pair of texts; the class tokens take `seen` from an image."""
        ids, paddings, places = _tokenize(backbone, config)
        prompts.check_length(backbone, paddings, config.num_class_prompts)
        words = backbone.embed_tokens(frozen, ids)
        classes = jnp.stack([params["query"] + seen] * 2)
        rows, paddings = prompts.insert_tokens(words, paddings, classes, at=places)
        if not config.num_deep_prompts:
            return normalize(backbone.encode_prompts(frozen, rows, paddings))
        own = params["deep"]
        options: TextOptions = {"insert": True, "extra_norm": own["norm"]}
        deep = layers.linear(own["projection"], own["tokens"])[:, None]
        return normalize(backbone.encode_prompts(frozen, rows, paddings, deep, **options))

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c 2 d"]:
        """Returns the pair before any image is seen; the sentences name no class."""
        return same_for_each(encode(frozen, params), len(class_names))

    def condition(frozen: Params, params: Params, features: VisionFeatures) -> Array:
        """Returns the texts [b, 2, d] of each image, which see its global token with Pre-VCP."""
        tokens = features.global_tokens[:, config.global_token]
        if not config.pre_vcp:
            return same_for_each(encode(frozen, params), len(tokens))

        def encode_one(token: Float[Array, " d"]) -> Float[Array, "2 d"]:
            # A convolution along the numbers of the embedding, each with its neighbors.
            padded = jnp.pad(token, 1)
            near = jnp.stack([padded[i : i + len(token)] for i in range(3)], axis=-1)
            return encode(frozen, params, layers.linear(params["filter"], near).T)

        return jax.vmap(encode_one)(tokens)

    def compare(
        params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> tuple[Float[Array, "b h w kinds*layers"], dict[str, Array]]:
        """Returns the margins of projected patches, then those of Post-VCP, and extras.

        For patches x_l of layer l, the texts T, and those T_l that have attended to x_l, they are
        exp(t_1) (cos(W_l x_l, T_a) - cos(W_l x_l, T_n)) and exp(t_2) (cos(x_l, T_l,a) - cos(x_l, T_l,n)).
        """
        scales, extras = params["log_scales"], {"text_features": text}
        patches = features.patches.astype(jnp.float32)
        projected = layers.linear_layers(params["layers"], patches)
        values = {"raw": jnp.moveaxis(cosines(projected, text), 1, -2)}
        if config.post_vcp:
            attend = functools.partial(layers.perceive, num_heads=config.post_vcp_heads)
            texts, extras["attention"] = attend(params["attention"], text, patches)
            extras["layer_text_features"] = normalize(texts)
            values["new"] = jnp.moveaxis(cosines(patches, texts), 1, -2)
        found = [jnp.exp(scales[k]) * margin(x, 1.0) for k, x in values.items()]
        return jnp.concatenate(found, axis=-1), extras

    def pixels_of(
        margins: Float[Array, "b h w kinds*layers"], size: anomaly_map.Size
    ) -> Float[Array, "b H W kinds"]:
        """Returns the probabilities of pixels, the mean over layers for each kind of margins."""
        pixels = anomaly_map.margin_probabilities(margins, size)
        return pixels.reshape(*pixels.shape[:3], -1, count).mean(axis=-1)

    def compute(
        frozen: Params, params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> Scores:
        """Returns the margins, and the sum over both kinds of the mean of their map's largest pixels.

        It is the mean of all pixels where these are fewer than `config.top_pixels`.
        """
        if config.pre_vcp:
            text = condition(frozen, params, features)
        found, extras = compare(params, text, features)
        pixels = pixels_of(found, backbone.preprocess.image_size)
        flat = pixels.reshape(len(pixels), -1, pixels.shape[-1]).swapaxes(1, 2)
        largest = jax.lax.top_k(flat, min(config.top_pixels, flat.shape[-1]))[0]
        return Scores({"patch": largest.mean(axis=-1).sum(axis=-1)}, found, extras)

    def make_map(patches: Float[Array, "b h w c"], size: anomaly_map.Size) -> Float[Array, "b H W"]:
        """Returns (alpha P_raw + (1 - alpha) P_new) of the probabilities of pixels, smoothed."""
        pixels = pixels_of(patches, size)
        if config.post_vcp:
            pixels *= jnp.array([config.alpha, 1 - config.alpha])
        summed = pixels.sum(axis=-1, keepdims=True)
        return anomaly_map.upsample(summed, size, sigma=config.sigma)[..., 0]

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        """Returns the sum of focal and Dice losses over layers and both kinds of maps."""
        found, _ = compare(params, condition(frozen, params, features), features)
        terms = losses.margin_terms(found, batch)
        terms.pop("dice_normal")
        return losses.total(terms)

    vary = functools.partial(augmentation.vary, probability=config.augment)
    side = vision_side(backbone, config, num_maps=1, patch_norm=False)
    side["anomaly_map"] = make_map
    method = Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 2.0 if config.post_vcp else 1.0),
        loss=loss,
        groups=grouped(log_scales="log_scales"),
        group_names=("prompts", "log_scales"),
        image_scores=("patch",),
        stages=(
            Stage(
                augment=vary if config.augment else None,
                mosaic=config.mosaic,
                mosaic_of=config.mosaic_of,
            ),
        ),
        import_params=functools.partial(_import_params, config),
        # The published code also trains a projection of the text that it does not use.
        unused_parameters=backbone.text_width * backbone.embed_dim,
        **side,
    )
    return scale_over_category(method, backbone) if config.normalize == "category" else method


def _tokenize(
    backbone: Backbone, config: VCPCLIPConfig
) -> tuple[Int[np.ndarray, "2 n"], Int[np.ndarray, "2 n"], list[int]]:
    """Returns ids and paddings of both sentences without class tokens, and the places of the latter."""
    parts = [text.partition("{}") for text in (config.normal_text, config.abnormal_text)]
    before = [front.strip() for front, _, _ in parts]
    whole = [f"{front.strip()} {back.strip()}".strip() for front, _, back in parts]
    ids, paddings = prompts.tokenize(backbone, ["", *before, *whole])
    # The empty text has at most a start and an end token: the others exceed it by their words.
    empty, *lengths = (paddings == 0).sum(axis=1)
    places = [backbone.num_start_tokens + int(length - empty) for length in lengths[:2]]
    return ids[-2:], paddings[-2:], places


def _import_params(config: VCPCLIPConfig, state: Arrays) -> Params:
    """Reads the parameters of the authors' checkpoint that the config has."""
    count = len(config.feature_layers)
    state = without_prefix(state, *MODULES)
    params: dict[str, Any] = {
        "query": state["prompt_query"].reshape(state["prompt_query"].shape[-2:]),
        "layers": layers.stack_from_torch(state, (f"fc.{i}" for i in range(count))),
        "log_scales": {"raw": state["prompt_temp"]},
    }
    if config.pre_vcp:
        kernel, bias = (state[f"prompt_linear1.fc.{name}"] for name in ("weight", "bias"))
        params["filter"] = {"kernel": kernel[:, 0].T, "bias": bias}
    if config.num_deep_prompts:
        tokens = [state[name] for name in ("prompt_embeddings", "deep_prompt_embeddings")]
        params["deep"] = {
            "tokens": np.concatenate(tokens),
            "projection": layers.linear_from_torch(state, "prompt_proj"),
            "norm": {"scale": state["prompt_norm.weight"], "bias": state["prompt_norm.bias"]},
        }
    if config.post_vcp:
        params["attention"] = layers.linears_from_torch(state, **layers.PERCEPTION)
        params["log_scales"]["new"] = state["prompt_temp_l1"]
    return params
