"""TPS (Text Prompt Shunt, AAAI 2025): prompts for images, prompts for pixels, and a pathway between them.

The image score compares a global token with two learned "global" prompts. The map compares patches with
two "shunt" prompts, whose features a pathway of two attentions adapts to each image's patches, layer by
layer, and to the global prompts.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.errors import UserError
from zsad_jax.methods import anomaly_map, losses
from zsad_jax.methods.base import Batch, Method, PyTree, Scores, check_extras, check_global_token
from zsad_jax.methods.blocks import TEXT_DEPTH, check_blocks, scale_blocks
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.learner import (
    STATES,
    count_deep_blocks,
    encode_learners,
    init_learner,
    learner_from_torch,
)
from zsad_jax.methods.pathway import (
    adapt_texts,
    count_unused_branch,
    init_pathway,
    pathway_from_torch,
)
from zsad_jax.methods.prompts import (
    check_deep_prompts,
    count_unused_projections,
    encode_sentences,
    tokenize,
)
from zsad_jax.methods.similarity import cosines, temperature_of

IMAGE_SCORES = ("global",)
LEARNERS = ("global", "shunt")
EXTRAS = (
    *("global_cosines", "global_probabilities", "patch_cosines", "patch_probabilities"),
    "pathway_features",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TPSConfig:
    """The switches of TPS; the defaults are those of the authors' training.

    Block numbers count from 1 in a vision tower of 24 blocks and a text tower of 12, and are scaled to the
    depth of the backbone's.

    Attributes:
      learned: False: the hand-written prompts, and no pathway (the paper's ablation).
      pathway: the shunt features pass the pathway; False: they are compared as they are.
      shared_pathway: one pathway for all layers; False: one for each, as the paper writes.
      pathway_at_test: False: scores compare the raw shunt features, as the released test script does,
        though training goes through the pathway.
      tune_text_projection: the text tower's projection into the joint space is trained with the pathway,
        as in the authors' code; None: where the backbone has one.
      num_prompts: learned tokens of each of the four prompts.
      learned_texts: the words behind the learned tokens: global normal and abnormal, shunt normal and
        abnormal.
      hand_written_texts: the same four of learned=False, as whole sentences; `{}` is the class name.
      deep_prompt_depth: text blocks with learned tokens of their own, the first one's being the prompts
        themselves; 1: no deep prompts.
      num_deep_prompts: deep prompts of each such block, shared by both states; 0: none.
      deep_prompts_float16: the deep prompts are rounded to float16 on their way into the tower, as in the
        authors' code; their gradient is not.
      feature_layers: vision blocks whose patches are compared.
      segmentation: "per_layer": a softmax for each layer, whose maps are added up; "summed": one softmax
        over the cosines' sum over layers, as the paper writes.
      pathway_heads: of both attentions; divides the width of the joint space.
      cls_norm: whether the global token passes the vision tower's last norm.
      global_token: which of the backbone's global tokens gives the image score, counted from 0.
      sigma: of the map's Gaussian, in pixels of the map; 0 does not smooth.
      temperature: divides the cosine; None is the backbone's own.
      init_std: of the learned tokens' initial normal distribution.
    """

    learned: bool = True
    pathway: bool = True
    shared_pathway: bool = True
    pathway_at_test: bool = True
    tune_text_projection: bool | None = None
    num_prompts: int = within(12, 1)
    learned_texts: tuple[str, ...] = (
        "object with all parts flawless.",
        "object with damaged parts.",
        "the flawless part.",
        "the damaged part.",
    )
    hand_written_texts: tuple[str, ...] = (
        "a photo of a normal {} with all parts flawless",
        "a photo of a anomalous {} with damaged parts",
        "a photo of the flawless part",
        "a photo of the damaged part",
    )
    deep_prompt_depth: int = within(9, 1, TEXT_DEPTH)
    num_deep_prompts: int = within(4, 0)
    deep_prompts_float16: bool = False
    feature_layers: tuple[int, ...] = (6, 12, 18, 24)
    segmentation: Literal["per_layer", "summed"] = "per_layer"
    pathway_heads: int = within(8, 1)
    cls_norm: bool = False
    global_token: int = within(0, 0)
    sigma: float = within(4.0, 0)
    temperature: float | None = within(0.07, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_blocks("feature_layers", self.feature_layers)
        for key in ("learned_texts", "hand_written_texts"):
            if len(getattr(self, key)) != len(LEARNERS) * len(STATES):
                raise UserError(
                    f"Config key '{key}' is {getattr(self, key)!r}; give four texts: normal and abnormal of the"
                    " image, normal and abnormal of the pixels."
                )

    @property
    def num_pathways(self) -> int | None:
        """How many there are; None: a single one for all layers."""
        return None if self.shared_pathway else len(self.feature_layers)


def tps(backbone: Backbone, config: TPSConfig | Mapping[str, Any] | None = None) -> Method:
    """TPS over a backbone.

    Args:
      backbone: any with patch tokens in the joint space.
      config: the switches, or a mapping of them; None: the authors' setting.

    Returns:
      A method whose params are {"global", "shunt": learner, "pathway": tree, "text_projection": [e, d]},
      the last two only where the config and the backbone have them, and {} when nothing is learned. Given
      {}, it uses the hand-written prompts. A learner is {"normal", "abnormal": [P, e], "deep":
      [blocks, p, e]}; with shared_pathway=False leaves of the pathway have a leading axis of layers. The
      group "prompts" (published learning rate 1e-3) holds the learners, "pathway" (1e-4) all else. Its
      prototypes [c, 4, d] are in the order of `learned_texts`.
      `patches` of its scores has a channel per layer, or one with segmentation="summed"; `score` takes
      `extras`, names out of `EXTRAS`.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(TPSConfig, config)
    _check(backbone, config)
    temperature = temperature_of(backbone, config.temperature)
    layers = scale_blocks(config.feature_layers, backbone.vision_depth)
    encode = _prompt_encoder(backbone, config)
    imported = functools.partial(_import_params, config, _tunes_projection(backbone, config))
    return Method(
        name="tps",
        config=config,
        init=functools.partial(_init, backbone, config),
        features=lambda frozen, params, images: backbone.encode_image(
            frozen, images, layers=layers, cls_norm=config.cls_norm
        ),
        prototypes=functools.partial(_prototypes, backbone, config, encode),
        score=functools.partial(_score, config, temperature),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_loss, config, temperature, encode),
        groups=_groups,
        group_names=("prompts", "pathway"),
        image_scores=IMAGE_SCORES,
        map_range=(0.0, float(len(layers)) if config.segmentation == "per_layer" else 1.0),
        works_untrained=True,
        features_key=(layers, None, config.cls_norm),
        import_params=imported if config.learned else None,
        aupro_thresholds="numpy",
        unused_parameters=_count_unused(backbone, config),
    )


def _check(backbone: Backbone, config: TPSConfig) -> None:
    """Refuses what a backbone cannot give."""
    check_global_token(backbone, config.global_token)
    if config.learned and _count_deep_blocks(backbone, config):
        check_deep_prompts(backbone, config.num_deep_prompts, config.num_prompts)
    if config.learned and config.pathway and backbone.embed_dim % config.pathway_heads:
        raise UserError(
            f"Config key 'pathway_heads' is {config.pathway_heads}, which does not divide the"
            f" {backbone.embed_dim} numbers of {backbone.name}'s text features; give a divisor."
        )
    if config.tune_text_projection and not _tunes_projection(backbone, config):
        reason = f"the text tower of {backbone.name} has no projection"
        raise UserError(
            "Config key 'tune_text_projection' is True, but"
            f" {reason if config.learned else 'learned=False learns nothing'}; give None or False."
        )


def _tunes_projection(backbone: Backbone, config: TPSConfig) -> bool:
    """Whether the text projection is trained: unless the config says no, where there is one."""
    wanted = config.learned and config.tune_text_projection is not False
    return wanted and "projection" in backbone.params["text"]


def _count_deep_blocks(backbone: Backbone, config: TPSConfig) -> int:
    return count_deep_blocks(backbone, config.deep_prompt_depth, config.num_deep_prompts)


def _init(backbone: Backbone, config: TPSConfig, key: Array, frozen: Params) -> Params:
    """Learned tokens from N(0, init_std²), a fresh pathway, and the backbone's own text projection."""
    if not config.learned:
        return {}
    *learner_keys, pathway_key = jax.random.split(key, 3)
    params: dict[str, Any] = {
        name: init_learner(
            one,
            backbone.text_width,
            num_prompts=config.num_prompts,
            deep=(_count_deep_blocks(backbone, config), config.num_deep_prompts),
            std=config.init_std,
        )
        for name, one in zip(LEARNERS, learner_keys, strict=True)
    }
    if config.pathway:
        params["pathway"] = init_pathway(
            pathway_key, backbone.embed_dim, copies=config.num_pathways
        )
    if _tunes_projection(backbone, config):
        # A copy, since a training step may donate its parameters' memory.
        projection = frozen["text"]["projection"]
        params["text_projection"] = jnp.array(projection, jnp.float32, copy=True)
    return params


def _groups(params: Params) -> PyTree:
    """The learners are "prompts"; the pathway and the text projection are "pathway"."""
    return {
        name: jax.tree.map(lambda _, name=name: "prompts" if name in LEARNERS else "pathway", part)
        for name, part in params.items()
    }


def _count_unused(backbone: Backbone, config: TPSConfig) -> int:
    """What the authors' optimiser holds to no effect.

    Those are linear layers beside the deep prompts, the pathway's image branch (an attention, a
    feed-forward part, a norm), and the vision tower's projection, which is behind frozen features.
    """
    if not config.learned:
        return 0
    deep = _count_deep_blocks(backbone, config)
    unused = len(LEARNERS) * count_unused_projections(backbone.text_width, deep)
    if config.pathway:
        unused += (config.num_pathways or 1) * count_unused_branch(backbone.embed_dim)
    if _tunes_projection(backbone, config):
        unused += backbone.vision_width * backbone.embed_dim
    return unused


def _import_params(config: TPSConfig, tuned: bool, state: Mapping[str, np.ndarray]) -> Params:
    """The parameters in the authors' checkpoint, where the config has them.

    One pathway is published; it serves every layer when the config has one for each.

    Raises:
      KeyError: when one is missing.
    """
    params: dict[str, Any] = {
        name: learner_from_torch(state, f"{theirs}.")
        for name, theirs in zip(LEARNERS, ("prompt_learner", "class_learner"), strict=True)
    }
    if config.pathway:
        params["pathway"] = pathway_from_torch(state, "former.")
        if copies := config.num_pathways:
            params["pathway"] = jax.tree.map(lambda x: np.stack([x] * copies), params["pathway"])
    if tuned:
        params["text_projection"] = np.asarray(state["former.text_projection"])
    return params


def _prompt_encoder(
    backbone: Backbone, config: TPSConfig
) -> Callable[[Params, Params], Float[Array, "4 d"]]:
    """The function (frozen, params) -> the four learned prompts' features, not normalised."""

    @functools.lru_cache(maxsize=1)
    def words() -> tuple[np.ndarray, np.ndarray]:
        """Ids and paddings of the fixed words; tokenised once, when needed."""
        return tokenize(backbone, config.learned_texts)

    def encode(frozen: Params, params: Params) -> Float[Array, "4 d"]:
        if "text_projection" in params:
            text = {**frozen["text"], "projection": params["text_projection"]}
            frozen = {**frozen, "text": text}
        learners = [params[name] for name in LEARNERS]
        float16 = config.deep_prompts_float16
        return encode_learners(backbone, frozen, words(), learners, float16=float16)

    return encode


def _prototypes(
    backbone: Backbone,
    config: TPSConfig,
    encode: Callable[[Params, Params], Float[Array, "4 d"]],
    frozen: Params,
    params: Params,
    class_names: Sequence[str],
) -> Float[Array, "c 4 d"]:
    """The learned features, not normalised and the same for every class; or the hand-written prompts'."""
    if not params or not config.learned:
        return encode_sentences(backbone, frozen, config.hand_written_texts, class_names)
    learned = encode(frozen, params)
    return jnp.broadcast_to(learned, (len(class_names), *learned.shape))


def _compare(
    config: TPSConfig,
    temperature: float,
    params: Params,
    texts: Float[Array, "b 4 d"],
    features: VisionFeatures,
) -> dict[str, Array]:
    """Compares each image with its texts; the pixels' go through the pathway if `params` has one.

    Returns:
      What `EXTRAS` names. There are cosines [b, 2] of the global token and [b, l, h, w, 2] of each layer's
      patches, the probabilities of both, those of patches for each layer or for all together, and
      "pathway_features" [b, l, 2, d], which patches were compared with, not normalised.
    """
    patches, of_image, shunt = features.patches, texts[:, :2], texts[:, 2:]
    if config.pathway and "pathway" in params:
        heads, shared = config.pathway_heads, config.shared_pathway
        of_pixels = adapt_texts(
            params["pathway"], shunt, of_image, patches, num_heads=heads, shared=shared
        )
    else:
        of_pixels = jnp.stack([shunt] * patches.shape[1], axis=1)
    similarity = jax.vmap(cosines, in_axes=1, out_axes=1)(patches, of_pixels)
    summed = config.segmentation == "summed"
    logits = similarity.sum(axis=1, keepdims=True) if summed else similarity
    image = cosines(features.global_tokens[:, config.global_token], of_image)
    return {
        "global_cosines": image,
        "global_probabilities": jax.nn.softmax(image / temperature, axis=-1),
        "patch_cosines": similarity,
        "patch_probabilities": jax.nn.softmax(logits / temperature, axis=-1),
        "pathway_features": of_pixels,
    }


def _score(
    config: TPSConfig,
    temperature: float,
    frozen: Params,
    params: Params,
    prototypes: Float[Array, "c 4 d"],
    features: VisionFeatures,
    category: Int[Array, " b"],
    *,
    extras: Collection[str] = (),
) -> Scores:
    """The image score, and patch probabilities [b, h, w, layers].

    The published map, the sum over layers of (1 - p_normal + p_abnormal) / 2, is that of p_abnormal alone,
    since the two add up to 1.
    """
    del frozen
    check_extras("tps", extras, EXTRAS)
    params = params if config.pathway_at_test else {}
    compared = _compare(config, temperature, params, prototypes[category], features)
    return Scores(
        image={"global": compared["global_probabilities"][:, 1]},
        patches=jnp.moveaxis(compared["patch_probabilities"][..., 1], 1, -1),
        extras={name: compared[name] for name in extras},
    )


def _loss(
    config: TPSConfig,
    temperature: float,
    encode: Callable[[Params, Params], Float[Array, "4 d"]],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Focal and dice losses of each layer's unsmoothed map, summed, plus the images' cross-entropy."""
    if not params:
        raise UserError("Nothing can be trained with learned=False; set learned=True.")
    features = losses.zero_invalid(features, batch.valid)
    learned = encode(frozen, params)
    texts = jnp.broadcast_to(learned, (batch.labels.shape[0], *learned.shape))
    compared = _compare(config, temperature, params, texts, features)
    local = losses.layer_terms(compared["patch_probabilities"], batch)
    logits = compared["global_cosines"] / temperature
    image = losses.cross_entropy(logits, batch.labels, batch.valid.astype(jnp.float32))
    return sum(local.values()) + image, {**local, "cross_entropy": image}
