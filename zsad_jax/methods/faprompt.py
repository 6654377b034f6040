"""FAPrompt (Fine-grained Abnormality Prompt Learning, ICCV 2025): compound prompts with an image's prior.

Several abnormal prompts share the tokens of the normal one and have a few tokens of their own (CAP).
In a second stage an offset, computed from patches of the image, is added to those (DAP). Based on
AnomalyCLIP, whose prompts are what is left without both.
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
from zsad_jax.methods import anomaly_map, losses
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
from zsad_jax.methods.similarity import cosines, normalize

IMAGE_SCORES = ("combined", "global", "patch")
EXTRAS = ("stage1_probabilities", "image_logits", "prompt_cosines", "text_features")
PRIOR_EXTRAS = ("stage2_probabilities", "prior")  # only with a second stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class FAPromptConfig:
    """The switches of FAPrompt; the defaults made the published numbers.

    Block numbers count on 24 vision and 12 text blocks, and are scaled to the depth of other towers.

    Attributes:
      compound: abnormal prompts share the normal tokens (CAP); False: AnomalyCLIP's two prompts.
      prior: the second stage, conditioned on the image (DAP); False: the first stage is all.
      normal_length: learned tokens of the normal prompt, shared by the abnormal ones.
      abnormal_length: further tokens of each abnormal prompt.
      num_abnormal: K, abnormal prompts.
      separate_length: learned tokens of each of the two prompts, without `compound`.
      num_selected: M, patches that the prior is computed from; the image may have fewer.
      dap_select: the first M patches in raster order, as the published code does (the image's top
        edge), or the M most abnormal ones, as the paper says.
      prior_reduction: the prior network's input is so many times as wide as its hidden layer.
      normal_text, abnormal_text: the words behind the learned tokens; in the paper they are the same.
      vv_from: first vision block of the value-value stream; None: the ordinary patch tokens.
      cls_norm: the global token passes the tower's last norm.
      global_token: which of the backbone's global tokens is used, counted from 0.
      deep_prompt_depth: text blocks with learned tokens, the first among them.
      num_deep_prompts: learned tokens of each block after the first. Where they take the place of
        tokens, those behind the normal tokens, if any, are each prompt's own and its words.
      deep_prompts_float16: round deep prompts to float16, as the published code does.
      max_scores: weights of the strongest patches of the first and second stage in the image score,
        2 to 1 as coded, or the mean as in the paper.
      local1_weight: of the first stage's focal and dice losses.
      local2_weight: of the second stage's.
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


class Comparison(NamedTuple):
    """What both stages say of a batch of images.

    Attributes:
      patches: probabilities of (normal, abnormal) in each stage.
      logits: cosines of the global token over the temperature, by the last stage's texts.
      scores: image scores by name.
      text: (normal, abnormal) prototype of each image in the last stage, unit norm.
      abnormal: features of its abnormal prompts.
      prior: what was added to their tokens; None without a second stage.
    """

    patches: tuple[Float[Array, "b h w 2"], ...]
    logits: Float[Array, "b 2"]
    scores: dict[str, Float[Array, " b"]]
    text: Float[Array, "b 2 d"]
    abnormal: Float[Array, "b k d"]
    prior: Float[Array, "b e"] | None


class Encoders(NamedTuple):
    """The prompt learner's way into the text tower.

    Attributes:
      normal: (frozen, params) -> [1 d].
      abnormal: (frozen, params, prior=None [e]) -> [k d].
    """

    normal: Callable[[Params, Params], Float[Array, "1 d"]]
    abnormal: Callable[..., Float[Array, "k d"]]


def faprompt(
    backbone: Backbone, config: FAPromptConfig | Mapping[str, Any] | None = None
) -> Method:
    """FAPrompt over a backbone.

    Args:
      backbone: any with patch tokens in the joint space.
      config: the switches, or a mapping of them; None: the published setting.

    Returns:
      A method whose params are {"normal": [P, e], "abnormal": [K, A, e]}, with deep prompts also
      {"deep": [depth - 1, p, e]}, with the prior also {"prior": two linear layers}. Image scores:
      "global" of the global token, "patch" of the strongest patches, and "combined", their mean.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(FAPromptConfig, config)
    check_global_token(backbone, config.global_token)
    temperature = backbone.temperature if config.temperature is None else config.temperature
    depth = scale_block(config.deep_prompt_depth, backbone.text_depth, of=TEXT_DEPTH)
    num_deep = depth - 1 if config.num_deep_prompts else 0
    vv_from = config.vv_from and scale_block(config.vv_from, backbone.vision_depth)
    layers = (backbone.vision_depth,)
    encoders = _make_encoders(backbone, config)
    compare = functools.partial(_compare, config, temperature, encoders)
    return Method(
        name="faprompt",
        config=config,
        init=functools.partial(_init, backbone, config, num_deep),
        features=lambda frozen, params, images: backbone.encode_image(
            frozen, images, layers=layers, vv_from=vv_from, cls_norm=config.cls_norm
        ),
        prototypes=functools.partial(_prototypes, encoders),
        score=functools.partial(_score, config, compare),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_loss, config, encoders, compare),
        groups=lambda params: jax.tree.map(lambda _: "prompts", params),
        image_scores=IMAGE_SCORES,
        features_key=(layers, vv_from, config.cls_norm),
        import_params=functools.partial(_import_params, config, num_deep),
        unused_parameters=count_unused_projections(backbone.text_width, num_deep),
    )


def _init(
    backbone: Backbone, config: FAPromptConfig, num_deep: int, key: Array, frozen: Params
) -> Params:
    """Learned tokens from N(0, init_std²), the prior network as PyTorch draws linear layers."""
    del frozen
    keys = jax.random.split(key, 4)
    draw = functools.partial(init_normal, std=config.init_std)
    width = backbone.text_width
    (_, normal_length), abnormal = config.context_shapes
    params = {
        "normal": draw(keys[0], (normal_length, width)),
        "abnormal": draw(keys[1], (*abnormal, width)),
    }
    if num_deep:
        params["deep"] = draw(keys[2], (num_deep, config.num_deep_prompts, width))
    if config.prior:
        inputs = config.num_selected * backbone.embed_dim
        hidden = max(inputs // config.prior_reduction, 1)
        params["prior"] = init_bottleneck(keys[3], inputs, hidden, width)
    return params


def _import_params(
    config: FAPromptConfig, num_deep: int, state: Mapping[str, np.ndarray]
) -> Params:
    """The learned arrays of the authors' state dict.

    Raises:
      KeyError: naming the first that is missing.
    """
    state = {name.removeprefix("prompt_learner."): array for name, array in state.items()}
    normal, abnormal = state["ctx_pos"], state["ctx_neg"]
    params: Params = {
        "normal": normal.reshape(normal.shape[-2:]),
        "abnormal": abnormal.reshape(abnormal.shape[-3:]),
    }
    if num_deep:
        # All that there are, so that a checkpoint of another depth does not fit.
        found = sum(name.startswith("compound_prompts_text.") for name in state)
        rows = range(max(found, num_deep))
        params["deep"] = np.stack([state[f"compound_prompts_text.{row}"] for row in rows])
    if config.prior:
        names = {"first": "patch_meta_net.linear1", "second": "patch_meta_net.linear2"}
        params["prior"] = {key: linear_from_torch(state, name) for key, name in names.items()}
    return params


def _make_encoders(backbone: Backbone, config: FAPromptConfig) -> Encoders:
    """The functions from parameters to text features."""

    @functools.lru_cache(maxsize=1)
    def tokens() -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Ids and paddings of the words behind the learned tokens; tokenised once, when needed."""
        texts = {"normal": config.normal_text, "abnormal": config.abnormal_text}
        words = {state: tokenize(backbone, [text]) for state, text in texts.items()}
        (_, length), _ = config.context_shapes
        # The last row of a text, which is read off, must stay behind the deep prompts.
        room = length + words["normal"][0].shape[1] - backbone.num_start_tokens - 1
        if backbone.num_start_tokens and config.num_deep_prompts > room:
            raise UserError(
                f"Config key 'num_deep_prompts' is {config.num_deep_prompts}, but over {backbone.name}"
                f" deep prompts take the place of tokens, of which the normal prompt has {room}; give at"
                " most as many."
            )
        return words

    def encode(
        frozen: Params, params: Params, state: str, context: Float[Array, "t p e"]
    ) -> Float[Array, "t d"]:
        ids, paddings = (np.repeat(array, context.shape[0], axis=0) for array in tokens()[state])
        deep = params.get("deep")
        if deep is not None:
            if config.deep_prompts_float16:
                deep = round_to_float16(deep)
            deep = deep[:, None]
        return encode_with_context(backbone, frozen, (ids, paddings), context, deep_prompts=deep)

    def normal(frozen: Params, params: Params) -> Float[Array, "1 d"]:
        return encode(frozen, params, "normal", params["normal"][None])

    def abnormal(
        frozen: Params, params: Params, prior: Float[Array, " e"] | None = None
    ) -> Float[Array, "k d"]:
        context = params["abnormal"] if prior is None else params["abnormal"] + prior
        if config.compound:
            shared = params["normal"]
            shared = jnp.broadcast_to(shared, (context.shape[0], *shared.shape))
            context = jnp.concatenate([shared, context], axis=1)
        return encode(frozen, params, "abnormal", context)

    return Encoders(normal, abnormal)


def _prototypes(
    encoders: Encoders, frozen: Params, params: Params, class_names: Sequence[str]
) -> Prototypes:
    """The prompts' features without a prior, the same for every class."""
    normal, abnormal = encoders.normal(frozen, params)[0], encoders.abnormal(frozen, params)
    count = len(class_names)
    return Prototypes(*(jnp.broadcast_to(x, (count, *x.shape)) for x in (normal, abnormal)))


def _compare(
    config: FAPromptConfig,
    temperature: float,
    encoders: Encoders,
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
        return prior, encoders.abnormal(frozen, params, prior)

    pair, abnormal, prior = _pair(*text), text.abnormal, None
    stages: tuple[Array, ...] = (probabilities(pair),)
    if config.prior:
        prior, abnormal = jax.vmap(second_stage)(
            patches.reshape(b, h * w, d), stages[0][..., 1].reshape(b, h * w)
        )
        pair = _pair(text.normal, abnormal)
        stages = (*stages, probabilities(pair))
    logits = cosines(features.global_tokens[:, config.global_token], pair) / temperature
    of_image = jax.nn.softmax(logits, axis=-1)[:, 1]
    of_patches = jnp.average(
        jnp.stack([stage[..., 1].max(axis=(1, 2)) for stage in stages]),
        axis=0,
        weights=jnp.array((2.0, 1.0) if config.max_scores == "2:1" else (1.0, 1.0))[: len(stages)],
    )
    values = (of_image + of_patches) / 2, of_image, of_patches
    scores = dict(zip(IMAGE_SCORES, values, strict=True))
    return Comparison(stages, logits, scores, pair, abnormal, prior)


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
    missing = config.num_selected - count
    selected = jnp.pad(normalize(patches[:count]), ((0, missing), (0, 0)))
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
    found = compare(frozen, params, text, features)
    computed = {
        "stage1_probabilities": lambda: found.patches[0],
        "stage2_probabilities": lambda: found.patches[1],
        "image_logits": lambda: found.logits,
        "prompt_cosines": lambda: cosines(features.patches[:, -1], found.abnormal),
        "text_features": lambda: found.text,
        "prior": lambda: found.prior,
    }
    return Scores(
        image=found.scores,
        patches=sum(found.patches)[..., 1:] / len(found.patches),  # type: ignore[index]
        extras={name: computed[name]() for name in extras},  # type: ignore[misc]
    )


def _loss(
    config: FAPromptConfig,
    encoders: Encoders,
    compare: Callable[..., Comparison],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of all terms that the modules in use give rise to."""
    features = losses.zero_invalid(features, batch.valid)
    names = ("",) * batch.labels.shape[0]  # the prompts are of no class
    text = _prototypes(encoders, frozen, params, names)
    found = compare(frozen, params, text, features)
    valid = batch.valid.astype(jnp.float32)
    size = batch.masks.shape[1], batch.masks.shape[2]
    total: Array = jnp.zeros(())
    terms: dict[str, Array] = {}
    for stage, weight in zip((1, 2), (config.local1_weight, config.local2_weight), strict=True):
        if stage > len(found.patches):
            break
        pixels = anomaly_map.upsample(found.patches[stage - 1], size)
        local = losses.segmentation_terms(pixels, batch)
        total += weight * sum(local.values())
        terms |= {f"{name}{stage}": value for name, value in local.items()}
    weighted = {
        "cross_entropy": losses.cross_entropy(found.logits, batch.labels, valid),
        "image_focal": _image_focal(found.scores["combined"], batch.labels, valid),
    }
    if config.compound:
        weighted["orthogonality"] = _orthogonality(text.abnormal[0])
    if found.prior is not None:  # summed over the batch, as published
        normal = valid * (batch.labels == 0)
        weighted["prior"] = (jnp.square(found.prior).mean(axis=1) * normal).sum()
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
