"""FAPrompt (Fine-grained Abnormality Prompt Learning, ICCV 2025): compound prompts with an image's prior.

Several abnormal prompts share the tokens of the normal one and have a few tokens of their own (CAP). In a
second stage an offset, computed from patches of the image, is added to those (DAP).
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.errors import UserError
from zsad_jax.methods import anomaly_map, learner, losses
from zsad_jax.methods.base import AnyArray, Batch, Method, Scores, check_extras, check_global_token
from zsad_jax.methods.blocks import TEXT_DEPTH, VISION_DEPTH, scale_block
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.layers import (
    bottleneck,
    init_bottleneck,
    init_normal,
    linear_from_torch,
    round_to_float16,
)
from zsad_jax.methods.prompts import count_unused_projections, encode_with_context, tokenize
from zsad_jax.methods.similarity import cosines, normalize, temperature_of

IMAGE_SCORES = ("combined", "global", "patch")
EXTRAS = ("stage1_probabilities", "image_logits", "prompt_cosines", "text_features")
PRIOR_EXTRAS = ("stage2_probabilities", "prior")  # only with a second stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class FAPromptConfig:
    """The switches of FAPrompt; the defaults made the published numbers.

    Block numbers are those of 24 vision and 12 text blocks, and are scaled to the depth of other towers.

    Attributes:
      compound: abnormal prompts share the normal tokens (CAP); False: AnomalyCLIP's two prompts.
      prior: the second stage, conditioned on the image (DAP); False: the first stage is all.
      normal_length: learned tokens of the normal prompt, shared by the abnormal ones.
      abnormal_length: further tokens of each abnormal prompt.
      num_abnormal: K, abnormal prompts.
      separate_length: learned tokens of each of the two prompts, without `compound`.
      num_selected: M, patches that the prior is computed from; an image may have fewer.
      dap_select: the first M patches in raster order, as the published code does (the image's top edge), or
        the M most abnormal ones, as the paper says.
      prior_reduction: the prior network's input is so many times as wide as its hidden layer.
      normal_text, abnormal_text: the words behind the learned tokens; in the paper both are "object.".
      vv_from: the block from which patches are those of the value-value stream; None: ordinary ones.
      cls_norm: whether the global token passes the vision tower's last norm.
      global_token: which of the backbone's global tokens is used, counted from 0.
      deep_prompt_depth: text blocks with learned tokens of their own, the first one's being the prompts
        themselves; 1: no deep prompts.
      num_deep_prompts: deep prompts of each such block, the same for all prompts; 0: none. Where they take the
        place of tokens, more than `normal_length` of them go on over what stands behind, as published.
      deep_prompts_float16: deep prompts are rounded to float16 on their way, as in the published code.
      max_scores: weights of the stages' strongest patches in the image score: as coded, or as in the paper.
      local1_weight, local2_weight: of the first and of the second stage's focal and dice losses.
      cross_entropy_weight: of the global token's cross-entropy.
      image_focal_weight: of the focal loss of the combined image score.
      orthogonality_weight: of the absolute cosines between abnormal prompts.
      prior_weight: of the squared prior of normal images.
      sigma: of the map's Gaussian, in pixels of the map; 0 does not smooth.
      temperature: divides the cosine; None is the backbone's own.
      init_std: of the learned tokens' initial normal distribution.
    """

    compound: bool = True
    prior: bool = True
    normal_length: int = within(5, 1)
    abnormal_length: int = within(2, 1)
    num_abnormal: int = within(10, 1)
    separate_length: int = within(12, 1)
    num_selected: int = within(10, 1)
    dap_select: Literal["first", "topk"] = "first"
    prior_reduction: int = within(16, 1)
    normal_text: str = "object."
    abnormal_text: str = "damaged object."
    vv_from: int | None = within(6, 1, VISION_DEPTH)
    cls_norm: bool = False
    global_token: int = within(0, 0)
    deep_prompt_depth: int = within(9, 1, TEXT_DEPTH)
    num_deep_prompts: int = within(4, 0)
    deep_prompts_float16: bool = False
    max_scores: Literal["2:1", "mean"] = "2:1"
    local1_weight: float = within(1.0, 0)
    local2_weight: float = within(0.5, 0)
    cross_entropy_weight: float = within(1.0, 0)
    image_focal_weight: float = within(1.0, 0)
    orthogonality_weight: float = within(0.1, 0)
    prior_weight: float = within(1.0, 0)
    sigma: float = within(10.0, 0)
    temperature: float | None = within(0.07, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def context_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(prompts, learned tokens of their own) of the normal and of the abnormal prompts."""
        if self.compound:
            return (1, self.normal_length), (self.num_abnormal, self.abnormal_length)
        return (1, self.separate_length), (1, self.separate_length)


class Prototypes(NamedTuple):
    """Text features of each category, not normalised.

    Attributes:
      normal: of the normal prompt.
      abnormal: of the K abnormal prompts, without an image's prior.
    """

    normal: Float[Array, "c d"]
    abnormal: Float[Array, "c k d"]


# Probabilities of (normal, abnormal) in the one or two stages, image scores and extras, each by name.
Comparison = tuple[
    Float[Array, "stages b h w 2"], dict[str, Float[Array, " b"]], dict[str, Float[Array, "b ..."]]
]


def faprompt(
    backbone: Backbone, config: FAPromptConfig | Mapping[str, Any] | None = None
) -> Method:
    """FAPrompt over a backbone.

    Args:
      backbone: any with patch tokens in the joint space.
      config: the switches, or a mapping of them; None: the published setting.

    Returns:
      A method whose params are {"normal": [P, e], "abnormal": [K, A, e]}, with deep prompts also
      {"deep": [depth - 1, p, e]}, with the prior also {"prior": two linear layers}, all of group
      "prompts". Image scores: "global" of the global token (the one of AnomalyCLIP), "patch" of the
      strongest patches, and "combined", their mean. `score` takes `extras`, names out of `EXTRAS` and, with
      the prior, `PRIOR_EXTRAS`.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(FAPromptConfig, config)
    check_global_token(backbone, config.global_token)
    temperature = temperature_of(backbone, config.temperature)
    deep = learner.count_deep_blocks(backbone, config.deep_prompt_depth, config.num_deep_prompts)
    vv_from = config.vv_from and scale_block(config.vv_from, backbone.vision_depth)
    layers = (backbone.vision_depth,)
    encode = _prompt_encoder(backbone, config, deep)
    compare = functools.partial(_compare, config, temperature, encode)
    return Method(
        name="faprompt",
        config=config,
        init=functools.partial(_init, backbone, config, deep),
        features=lambda frozen, params, images: backbone.encode_image(
            frozen, images, layers=layers, vv_from=vv_from, cls_norm=config.cls_norm
        ),
        prototypes=functools.partial(_prototypes, encode),
        score=functools.partial(_score, config, compare),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_loss, config, encode, compare),
        groups=lambda params: jax.tree.map(lambda _: "prompts", params),
        image_scores=IMAGE_SCORES,
        features_key=(layers, vv_from, config.cls_norm),
        import_params=functools.partial(_import_params, config),
        aupro_thresholds="numpy",
        unused_parameters=count_unused_projections(backbone.text_width, deep),
    )


def _init(
    backbone: Backbone, config: FAPromptConfig, num_deep: int, key: Array, frozen: Params
) -> Params:
    """Learned tokens from N(0, init_std²), the prior network as PyTorch draws linear layers."""
    del frozen
    learner_key, abnormal_key, prior_key = jax.random.split(key, 3)
    width, std = backbone.text_width, config.init_std
    (_, length), abnormal = config.context_shapes
    params: dict[str, Any] = learner.init_learner(
        learner_key, width, num_prompts=length, deep=(num_deep, config.num_deep_prompts), std=std
    )
    params["abnormal"] = init_normal(abnormal_key, (*abnormal, width), std=std)
    if config.prior:
        inputs = config.num_selected * backbone.embed_dim
        hidden = max(inputs // config.prior_reduction, 1)
        params["prior"] = init_bottleneck(prior_key, inputs, hidden, width)
    return params


def _import_params(config: FAPromptConfig, state: Mapping[str, np.ndarray]) -> Params:
    """What the authors' state dict has of the learned arrays; what has no effect is left out.

    Raises:
      KeyError: naming the first that is missing.
    """
    state = learner.without_prefix(state)
    params: dict[str, Any] = learner.learner_from_torch(state, "")
    abnormal = params["abnormal"]
    params["abnormal"] = abnormal.reshape(-1, *abnormal.shape[-2:])
    if config.prior:
        names = {"first": "patch_meta_net.linear1", "second": "patch_meta_net.linear2"}
        params["prior"] = {key: linear_from_torch(state, name) for key, name in names.items()}
    return params


def _prompt_encoder(
    backbone: Backbone, config: FAPromptConfig, num_deep: int
) -> Callable[..., Float[Array, "t d"]]:
    """The function (frozen, params, state, prior=None) -> features of the state's prompts, raw."""

    @functools.lru_cache(maxsize=1)
    def tokens() -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Ids and paddings of the words behind the learned tokens; tokenised once, when needed."""
        words = [tokenize(backbone, [text]) for text in (config.normal_text, config.abnormal_text)]
        # The end token of a text, which is read off, must stay behind the deep prompts.
        (_, length), _ = config.context_shapes
        room = length + words[0][0].shape[1] - backbone.num_start_tokens - 1
        if num_deep and backbone.num_start_tokens and config.num_deep_prompts > room:
            raise UserError(
                f"Config key 'num_deep_prompts' is {config.num_deep_prompts}, but over {backbone.name} deep"
                f" prompts take the place of tokens, and the normal prompt has {room}; give at most as many."
            )
        return dict(zip(learner.STATES, words, strict=True))

    def encode(
        frozen: Params, params: Params, state: str, prior: Float[Array, " e"] | None = None
    ) -> Float[Array, "t d"]:
        context = params[state] if state == "abnormal" else params[state][None]
        if prior is not None:
            context = context + prior
        if state == "abnormal" and config.compound:
            shared = jnp.broadcast_to(params["normal"], (len(context), *params["normal"].shape))
            context = jnp.concatenate([shared, context], axis=1)
        ids, paddings = (np.repeat(array, len(context), axis=0) for array in tokens()[state])
        deep = params["deep"][:, None] if "deep" in params else None
        if deep is not None and config.deep_prompts_float16:
            deep = round_to_float16(deep)
        return encode_with_context(backbone, frozen, (ids, paddings), context, deep_prompts=deep)

    return encode


def _prototypes(
    encode: Callable[..., Array], frozen: Params, params: Params, class_names: Sequence[str]
) -> Prototypes:
    """The prompts' features without a prior, the same for every class."""
    normal, abnormal = (encode(frozen, params, state) for state in learner.STATES)
    count = len(class_names)
    return Prototypes(*(jnp.broadcast_to(x, (count, *x.shape)) for x in (normal[0], abnormal)))


def _compare(
    config: FAPromptConfig,
    temperature: float,
    encode: Callable[..., Array],
    frozen: Params,
    params: Params,
    text: Prototypes,
    features: VisionFeatures,
) -> Comparison:
    """Both stages; `text` has the features of each image's category."""
    patches = features.patches[:, -1]
    b, h, w, d = patches.shape

    def probabilities(pair: Float[Array, "b 2 d"]) -> Float[Array, "b h w 2"]:
        return jax.nn.softmax(cosines(patches, pair) / temperature, axis=-1)

    def second_stage(
        patches: Float[Array, "n d"], anomaly: Float[Array, " n"]
    ) -> tuple[Float[Array, " e"], Float[Array, "k d"]]:
        """The prior of one image, and its abnormal prompts with it."""
        prior = _prior(config, params["prior"], patches, anomaly)
        return prior, encode(frozen, params, "abnormal", prior)

    pair, abnormal, prior = _pair(*text), text.abnormal, None
    stages = probabilities(pair)[None]
    if config.prior:
        prior, abnormal = jax.vmap(second_stage)(
            patches.reshape(b, h * w, d), stages[0, ..., 1].reshape(b, h * w)
        )
        pair = _pair(text.normal, abnormal)
        stages = jnp.concatenate([stages, probabilities(pair)[None]])
    logits = cosines(features.global_tokens[:, config.global_token], pair) / temperature
    of_image = jax.nn.softmax(logits, axis=-1)[:, 1]
    weights = np.array((2, 1) if config.max_scores == "2:1" else (1, 1))[: len(stages)]
    of_patches = jnp.average(stages[..., 1].max(axis=(2, 3)), axis=0, weights=weights)
    values = (of_image + of_patches) / 2, of_image, of_patches
    extras = {
        "stage1_probabilities": stages[0],
        "image_logits": logits,
        "prompt_cosines": cosines(patches, abnormal),
        "text_features": pair,
    }
    if prior is not None:
        extras |= {"stage2_probabilities": stages[1], "prior": prior}
    return stages, dict(zip(IMAGE_SCORES, values, strict=True)), extras


def _pair(normal: Float[Array, "b d"], abnormal: Float[Array, "b k d"]) -> Float[Array, "b 2 d"]:
    """Unit-norm (normal, abnormal) prototypes; the latter is the plain mean of the prompts."""
    return normalize(jnp.stack([normal, abnormal.mean(axis=1)], axis=1))


def _prior(
    config: FAPromptConfig,
    network: Params,
    patches: Float[Array, "n d"],
    anomaly: Float[Array, " n"],
) -> Float[Array, " e"]:
    """What one image adds to the abnormal prompts' tokens: Omega, from its selected patches."""
    count = min(config.num_selected, patches.shape[0])
    if config.dap_select == "topk":
        patches = patches[jax.lax.top_k(jax.lax.stop_gradient(anomaly), count)[1]]
    # An image of fewer patches leaves the network's last inputs at zero.
    selected = jnp.pad(normalize(patches[:count]), ((0, config.num_selected - count), (0, 0)))
    return bottleneck(network, selected.reshape(-1))


def _score(
    config: FAPromptConfig,
    compare: Callable[..., Comparison],
    frozen: Params,
    params: Params,
    prototypes: Prototypes,
    features: VisionFeatures,
    category: Int[Array, " b"],
    *,
    extras: Collection[str] = (),
) -> Scores:
    """Image scores, and patch probabilities [b, h, w, 1]: the mean of both stages.

    The published map adds up abnormal and 1 - normal probabilities, which are equal.
    """
    check_extras("faprompt", extras, EXTRAS + PRIOR_EXTRAS if config.prior else EXTRAS)
    text = jax.tree.map(lambda x: x[category], prototypes)
    stages, image, found = compare(frozen, params, text, features)
    return Scores(
        image=image,
        patches=stages.mean(axis=0)[..., 1:],
        extras={name: found[name] for name in extras},
    )


def _loss(
    config: FAPromptConfig,
    encode: Callable[..., Array],
    compare: Callable[..., Comparison],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of all terms that the modules in use give rise to."""
    features = losses.zero_invalid(features, batch.valid)
    text = _prototypes(encode, frozen, params, ("",) * len(batch.labels))  # of no class
    stages, scores, found = compare(frozen, params, text, features)
    valid = batch.valid.astype(jnp.float32)
    size = batch.masks.shape[1], batch.masks.shape[2]
    total: Array = jnp.zeros(())
    terms: dict[str, Array] = {}
    weights = config.local1_weight, config.local2_weight
    for number, (stage, weight) in enumerate(zip(stages, weights, strict=False), 1):
        local = losses.segmentation_terms(anomaly_map.upsample(stage, size), batch)
        total += weight * sum(local.values())
        terms |= {f"{name}{number}": value for name, value in local.items()}
    weighted = {
        "cross_entropy": losses.cross_entropy(found["image_logits"], batch.labels, valid),
        "image_focal": _image_focal(scores["combined"], batch.labels, valid),
    }
    if config.compound:
        weighted["orthogonality"] = _orthogonality(text.abnormal[0])
    if "prior" in found:  # summed over the batch, as published
        squares = jnp.square(found["prior"]).mean(axis=1)
        weighted["prior"] = (squares * valid * (batch.labels == 0)).sum()
    total += sum(getattr(config, f"{name}_weight") * term for name, term in weighted.items())
    return total, terms | weighted


def _orthogonality(abnormal: Float[Array, "k d"]) -> Float[Array, ""]:
    """The absolute cosines between abnormal prompts, summed over all pairs."""
    first, second = np.triu_indices(abnormal.shape[0], 1)
    unit = normalize(abnormal)
    return jnp.abs((unit[first] * unit[second]).sum(axis=-1)).sum()


def _image_focal(
    scores: Float[Array, " b"], labels: Int[AnyArray, " b"], weights: Float[AnyArray, " b"]
) -> Float[Array, ""]:
    """Focal loss (gamma 2) of image scores in [0, 1], taken for logits as the published code does."""
    entropy = jax.nn.softplus(scores) - labels * scores
    return losses.weighted_mean(jnp.square(1 - jnp.exp(-entropy)) * entropy, weights)
