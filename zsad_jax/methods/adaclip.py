"""AdaCLIP (arXiv 2407.15795): learned tokens in both towers, static ones and ones that depend on the image.

A first pass of the frozen vision tower gives a token of the image, from which linear layers make the dynamic
tokens. The image score also sees the most anomalous patches, which are clustered (hybrid semantic fusion).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, Tokens, VisionFeatures, VisionOptions
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.feature_cache import Images
from zsad_jax.methods.base import Batch, Loss, Method, Scores, Stage, grouped, score_fn, vision_side
from zsad_jax.methods.shared import anomaly_map, layers, losses, prompts
from zsad_jax.methods.shared.clusters import kmeans
from zsad_jax.methods.shared.config import (
    FOUR_LAYERS,
    TRAINING,
    VISION_DEPTH,
    Fields,
    Form,
    OpenClipConfig,
    Recipe,
)
from zsad_jax.methods.shared.learner import without_prefix
from zsad_jax.methods.shared.similarity import cosines, margin, normalize
from zsad_jax.utils.config import config_from, within

TOKENS_PER_CLUSTER = 5  # most anomalous patches that are clustered


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaCLIPConfig(prompts.SentencesConfig, OpenClipConfig):
    """Options of AdaCLIP; the defaults are the published ones, except for `dice_rows` and `kmeans_steps`.

    Attributes:
      prompt_type: static tokens (S), dynamic ones (D), or their sum; "": none.
      prompt_branch: towers with learned tokens, of vision (V) and language (L); "": none.
      num_prompts: learned tokens of a block.
      prompt_depth: number of first blocks of each tower with learned tokens; the first text block has none.
      hsf: the image score sees, beside the class token, the most anomalous patches: the mean of the centers of
        their clusters, or their mean; "none": the class token alone.
      clusters: number of clusters of the most anomalous patches, which are five times as many.
      kmeans_steps: steps of Lloyd's algorithm from a fixed start (scikit-learn's, as published, draws it).
      hsf_share: share of these patches in the sum with the class token.
      mosaic: probability that a training image becomes a mosaic of four images of its category.
      dice_rows: the Dice losses take each row of pixels as an image, as the published code does.
      temperature: divides the cosines.
    """

    name: ClassVar[str] = "adaclip"
    title: ClassVar[str] = "AdaCLIP"
    recipe: ClassVar[Recipe] = Recipe(
        training=TRAINING
        | {"epochs": 5, "batch_size": 1, "learning_rate": 0.01}
        | {"optimizer": "adamw", "weight_decay": 0.01},
        trained_on={one: {"method": {"mosaic": 0.0}} for one in ("visa", "visa+cvc_clinicdb")},
    )
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma",)
    training_only: ClassVar[tuple[str, ...]] = ("mosaic", "dice_rows")
    vv_from: ClassVar[None] = None  # type: ignore[misc]

    tower: Form = "adaclip"
    prompt_type: Literal["SD", "S", "D", ""] = "SD"
    prompt_branch: Literal["VL", "V", "L", ""] = "VL"
    num_prompts: int = within(5, 1)
    prompt_depth: int = within(4, 1, VISION_DEPTH)
    hsf: Literal["kmeans", "mean", "none"] = "kmeans"
    clusters: int = within(20, 1)
    kmeans_steps: int = within(20, 0)
    hsf_share: float = within(0.2, 0, 1)
    mosaic: float = within(0.2, 0, 1)
    dice_rows: bool = False
    feature_layers: tuple[int, ...] = FOUR_LAYERS
    temperature: float = within(0.01, 1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.prompt_type and self.prompt_branch):
            self.reject_unused("without learned tokens", "num_prompts", "prompt_depth", "init_std")
        elif self.prompt_type == "D":
            self.reject_unused("without static tokens", "init_std")
        if self.prompt_type and self.prompt_branch == "L":
            self.require("prompt_depth", self.prompt_depth > 1, "at least 2 with prompt_branch='L'")
        if self.hsf != "kmeans":
            self.reject_unused(f"with hsf={self.hsf!r}", "kmeans_steps")
        if self.hsf == "none":
            self.reject_unused("with hsf='none'", "clusters", "hsf_share")


def adaclip(backbone: Backbone, config: AdaCLIPConfig | Fields | None = None) -> Method:
    """Returns AdaCLIP over a backbone whose images and texts share a space.

    Its params are {"visual", "text": {"static": [blocks, p, width], "dynamic": p linear layers}, "patches": a
    linear layer for each feature layer, "token": a linear layer}, with layers stacked. The last two are the
    group "projections", the others "prompts". Its maps have one channel, the mean margin over layers; its
    extras are "text_features" and "layer_margins".

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(AdaCLIPConfig, config)
    backbone = backbone.in_form(config.tower)
    side = vision_side(backbone, config, num_maps=1, patch_norm=False)
    family = config.family()
    sentences = family.sentences("object")
    states = np.repeat(range(2), [len(texts) for texts in sentences])
    depths = {}  # blocks with learned tokens; the first one of the text tower has none
    if config.prompt_type and "V" in config.prompt_branch:
        depths["visual"] = min(config.prompt_depth, backbone.vision_depth)
    if config.prompt_type and "L" in config.prompt_branch and config.prompt_depth > 1:
        depths["text"] = min(config.prompt_depth, backbone.text_depth) - 1
    conditional = "text" in depths and "D" in config.prompt_type
    if "text" in depths and backbone.num_start_tokens:
        room = min(len(text.split()) for texts in sentences for text in texts)
        expected = f"at most {room}, the words of the shortest sentence, which they replace"
        config.require("num_prompts", config.num_prompts <= room, expected)

    @functools.cache
    def words(class_names: tuple[str, ...]) -> Tokens:
        """Returns token ids and paddings [class, sentence, n], the normal sentences first."""
        pairs = [family.sentences(name) for name in class_names]
        ids, paddings = prompts.tokenize(backbone, [text for n, a in pairs for text in (*n, *a)])
        shape = len(pairs), -1, ids.shape[1]
        return ids.reshape(shape), paddings.reshape(shape)

    def init(key: Array, frozen: Params) -> Params:
        """Returns new params: static tokens from N(0, init_std²), and layers in PyTorch's default ranges."""
        joint, count = backbone.embed_dim, config.num_prompts
        widths = {"visual": backbone.vision_width, "text": backbone.text_width}
        keys = dict(zip(("patches", "token", *widths), jax.random.split(key, 4), strict=True))

        def tokens(tower: str) -> Params:
            static, dynamic = jax.random.split(keys[tower])
            found: dict[str, Any] = {}
            if "S" in config.prompt_type:
                drawn = jax.random.normal(static, (depths[tower], count, widths[tower]))
                found["static"] = config.init_std * drawn
            if "D" in config.prompt_type:
                found["dynamic"] = layers.init_linears(dynamic, count, joint, widths[tower])
            return found

        params: Params = {tower: tokens(tower) for tower in depths}
        size = len(config.feature_layers), widths["visual"], joint
        params["patches"] = layers.init_linears(keys["patches"], *size)
        params["token"] = layers.init_linear(keys["token"], joint, joint)
        return params

    def learned(
        params: Params, tower: str, seen: Float[Array, "b d"]
    ) -> Float[Array, "deep #b p e"] | None:
        """Returns the tokens of each block, static_j + dynamic(seen), given plain tokens of images."""
        if tower not in depths:
            return None
        own, found = params[tower], jnp.zeros((depths[tower], 1, 1, 1))
        if "static" in own:
            found += own["static"][:, None]
        if "dynamic" in own:
            found += jax.vmap(layers.linear, in_axes=(0, None), out_axes=1)(own["dynamic"], seen)
        return found

    def features(frozen: Params, params: Params, images: Images) -> VisionFeatures:
        """Returns the features with learned tokens, whose global tokens precede the plain ones."""
        plain = backbone.encode_image(frozen, images, cls_norm=config.cls_norm).global_tokens
        options: VisionOptions = {
            "layers": config.layers_of(backbone.vision_depth),
            "cls_norm": config.cls_norm,
            "patch_norm": False,
            "prompts": learned(params, "visual", plain[:, config.global_token]),
        }
        found = backbone.encode_image(frozen, images, **options)
        both = jnp.concatenate([found.global_tokens, plain], axis=1)
        return found._replace(global_tokens=both)

    def encode(
        frozen: Params, params: Params, own: Tokens, plain: Float[Array, " d"]
    ) -> Float[Array, "2 d"]:
        """Returns the texts (normal, anomalous) of a class, given the plain token of an image."""
        ids, paddings = own
        deep = learned(params, "text", plain[None])
        rows = backbone.encode_prompts(frozen, backbone.embed_tokens(frozen, ids), paddings, deep)
        return prompts.ensemble(rows, states, 2)

    def encode_each(
        frozen: Params, params: Params, own: Tokens, features: VisionFeatures
    ) -> Float[Array, "b 2 d"]:
        # The plain tokens are the last ones; without visual tokens, there are no others.
        plain = features.global_tokens[:, config.global_token - backbone.num_global_tokens]
        return jax.vmap(functools.partial(encode, frozen, params))(own, plain)

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Any:
        """Returns the texts [c, 2, d] or, if images change them, the token ids and paddings of sentences."""
        own = jax.tree.map(jnp.asarray, words(tuple(class_names)))
        unseen = jnp.zeros(backbone.embed_dim)
        return own if conditional else jax.lax.map(lambda x: encode(frozen, params, x, unseen), own)

    def compare(
        params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> tuple[Float[Array, "b h w layers"], Float[Array, " b"]]:
        """Returns the margins (cos(x, t_a) - cos(x, t_n)) / tau of projected patches, and of images.

        The x of an image is s c + (1 - s) f / |f|, with the projected class token f and the fused patches c.
        """
        patches = normalize(layers.linear_layers(params["patches"], features.patches))
        margins = jnp.moveaxis(margin(cosines(patches, text), config.temperature), 1, -1)
        token = features.global_tokens[:, config.global_token]
        token = normalize(layers.linear(params["token"], token))
        if config.hsf != "none":
            fused = jax.vmap(functools.partial(fuse, config))(patches, margins)
            token = config.hsf_share * fused + (1 - config.hsf_share) * token
        return margins, margin(cosines(token, text), config.temperature)

    def compute(frozen: Params, params: Params, own: Any, features: VisionFeatures) -> Scores:
        text = encode_each(frozen, params, own, features) if conditional else own
        margins, image = compare(params, text, features)
        extras = {"text_features": text, "layer_margins": margins}
        return Scores({"global": jax.nn.sigmoid(image)}, margins.mean(-1, keepdims=True), extras)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        """Returns the sum of the focal loss of images, and of focal and Dice losses of each layer."""
        if "text" in depths:
            own = jax.tree.map(lambda x: jnp.asarray(x)[batch.category], words(batch.class_names))
            text = encode_each(frozen, params, own, features)
        else:
            assert batch.fixed is not None  # see `Stage`
            text = batch.fixed[batch.category]
        margins, image = compare(params, text, features)
        terms = losses.margin_terms(margins, batch, dice_rows=config.dice_rows)
        terms["image_focal"] = losses.image_focal(image, batch)
        return losses.total(terms)

    def import_params(state: Arrays) -> Params:
        """Reads the authors' checkpoint, without static tokens of the first text block, which it never uses."""
        state = without_prefix(state, "clip_model")

        def stacked(name: str, count: int) -> Params:
            return layers.stack_from_torch(state, (f"{name}.head.{i}" for i in range(count)))

        def tokens(tower: str) -> Params:
            found, first = {}, int(tower == "text")
            if "S" in config.prompt_type:
                names = [f"static_prompts.{first + i}" for i in range(depths[tower])]
                found["static"] = np.stack([state[f"{tower}_prompter.{name}"] for name in names])
            if "D" in config.prompt_type:
                found["dynamic"] = stacked(f"dynamic_{tower}_prompt_generator", config.num_prompts)
            return found

        params: Params = {tower: tokens(tower) for tower in depths}
        params["patches"] = stacked("patch_token_layer", len(config.feature_layers))
        params["token"] = layers.linear_from_torch(state, "cls_token_layer.head.0")
        return params

    make_map = functools.partial(anomaly_map.margin_map, sigma=config.sigma)
    own: dict[str, Any] = {"anomaly_map": make_map}
    if "visual" in depths:
        own |= {"features": features, "features_key": None, "cacheable": False}
    unused = "S" in config.prompt_type and "L" in config.prompt_branch
    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 1.0),
        loss=loss,
        groups=grouped(patches="projections", token="projections"),
        group_names=("prompts", "projections"),
        stages=(Stage(mosaic=config.mosaic, fixed=None if "text" in depths else prototypes),),
        import_params=import_params,
        unused_parameters=config.num_prompts * backbone.text_width if unused else 0,
        **{**side, **own},
    )


def fuse(
    config: AdaCLIPConfig,
    patches: Float[Array, "layers h w d"],
    margins: Float[Array, "h w layers"],
) -> Float[Array, " d"]:
    """Returns the unit-norm mean of the centers of clusters of an image's most anomalous patches.

    A center is the mean over its patches and over layers; what is clustered are the joined layers.
    """
    rows = patches.reshape(len(patches), margins[..., 0].size, -1)
    count = min(TOKENS_PER_CLUSTER * config.clusters, rows.shape[1])
    _, strongest = jax.lax.top_k(margins.mean(axis=-1).reshape(-1), count)
    tokens = jnp.moveaxis(rows[:, strongest], 0, 1)
    clusters = min(config.clusters if config.hsf == "kmeans" else 1, count)
    joined = jax.lax.stop_gradient(tokens).reshape(count, -1)
    labels = kmeans(joined, clusters, steps=config.kmeans_steps if clusters > 1 else 0)
    # The sum of centers serves as their mean, since the result is normalized; empty clusters have none.
    sizes = jnp.bincount(labels, length=clusters)
    return normalize((tokens.mean(axis=1) / sizes[labels][:, None]).sum(axis=0))
