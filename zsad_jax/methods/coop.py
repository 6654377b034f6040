"""CoOp (IJCV 2022) and CoCoOp (CVPR 2022), as normal/abnormal detectors.

A learned context, shared by both states, stands in sentences about an image's own class; CoCoOp shifts the
context by what a small network makes of the image. The adaptation to anomaly detection is AnomalyCLIP's
(arXiv 2310.18961). That paper does not say how its CoCoOp makes maps that are far better than CoOp's; here
CoCoOp learns from the masks and compares value-value patches, which is our assumption.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods import anomaly_map, losses
from zsad_jax.methods.base import Batch, Method, check_global_token
from zsad_jax.methods.blocks import VISION_DEPTH, check_blocks, scale_block, scale_blocks
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.layers import bottleneck, init_bottleneck, init_normal, linear_from_torch
from zsad_jax.methods.learner import without_prefix
from zsad_jax.methods.pair_score import IMAGE_SCORES, pair_scorer
from zsad_jax.methods.prompts import check_length, clean_class_name, insert_tokens, tokenize
from zsad_jax.methods.similarity import cosine_softmax, cosines, normalize, temperature_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoOpConfig:
    """The switches of CoOp; the defaults are those of the papers that compare with it.

    Attributes:
      num_prompts: learned tokens, shared by both states.
      position: where they stand: before the class ("end" of the sentence is the class), half before and
        half after it, or after it.
      normal_word, abnormal_word: before the class name.
      local_loss: learn from the masks as well, with the losses of AnomalyCLIP.
      feature_layers: vision blocks, of a tower of 24, whose maps are added up.
      vv_from: the block from which patches are those of the value-value stream; None: ordinary ones.
      cls_norm: whether the global token passes the vision tower's last norm, as in CLIP.
      global_token: which of the backbone's global tokens gives the image score, counted from 0.
      sigma: of the map's Gaussian, in pixels of the map; 0 does not smooth.
      temperature: divides the cosine (CLIP's own scale is 0.01); None is the backbone's own.
      init_std: of the learned tokens' initial normal distribution.
    """

    num_prompts: int = within(12, 1)
    position: Literal["end", "middle", "front"] = "end"
    normal_word: str = "normal"
    abnormal_word: str = "anomalous"
    local_loss: bool = False
    feature_layers: tuple[int, ...] = (24,)
    vv_from: int | None = within(None, 1, VISION_DEPTH)
    cls_norm: bool = True
    global_token: int = within(0, 0)
    sigma: float = within(4.0, 0)
    temperature: float | None = within(0.07, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_blocks("feature_layers", self.feature_layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoCoOpConfig(CoOpConfig):
    """The switches of CoCoOp: CoOp's, and the network's.

    Attributes:
      reduction: the network's hidden width is the joint width divided by this.
    """

    local_loss: bool = True
    vv_from: int | None = within(6, 1, VISION_DEPTH)
    reduction: int = within(16, 1)


class Prototypes(NamedTuple):
    """The sentences of each class, (normal, abnormal), with the context in its place.

    Attributes:
      embeddings: of the tokens.
      paddings: 1 = pad.
      is_context: 1 where a token is learned.
      text: the unit-norm text features, where no image changes them.
    """

    embeddings: Float[Array, "c 2 n e"]
    paddings: Int[Array, "c 2 n"]
    is_context: Float[Array, "c 2 n"]
    text: Float[Array, "c 2 d"] | None


def coop(backbone: Backbone, config: CoOpConfig | Mapping[str, Any] | None = None) -> Method:
    """CoOp over a backbone.

    Args:
      backbone: any with patch tokens in the joint space.
      config: the switches, or a mapping of them; None: the defaults.

    Returns:
      A method whose params are {"context": [P, e]}, of group "prompts".

    Raises:
      UserError: for an unknown key or a bad value.
    """
    return _make("coop", backbone, config_from(CoOpConfig, config))


def cocoop(backbone: Backbone, config: CoCoOpConfig | Mapping[str, Any] | None = None) -> Method:
    """CoCoOp over a backbone: params are {"context", "network"}; the rest as `coop`."""
    return _make("cocoop", backbone, config_from(CoCoOpConfig, config))


def _make(name: str, backbone: Backbone, config: CoOpConfig) -> Method:
    check_global_token(backbone, config.global_token)
    temperature = temperature_of(backbone, config.temperature)
    layers = scale_blocks(config.feature_layers, backbone.vision_depth)
    vv_from = config.vv_from and scale_block(config.vv_from, backbone.vision_depth)
    prototypes = functools.partial(_prototypes, backbone, config)
    texts = functools.partial(_texts, backbone, config)
    return Method(
        name=name,
        config=config,
        init=functools.partial(_init, backbone, config),
        features=lambda frozen, params, images: backbone.encode_image(
            frozen, images, layers=layers, vv_from=vv_from, cls_norm=config.cls_norm
        ),
        prototypes=prototypes,
        score=pair_scorer(name, texts, token=config.global_token, temperature=temperature),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_loss, config, temperature, prototypes, texts),
        groups=lambda params: jax.tree.map(lambda _: "prompts", params),
        image_scores=IMAGE_SCORES,
        map_range=(0.0, float(len(layers))),
        features_key=(layers, vv_from, config.cls_norm),
        import_params=functools.partial(_import_params, conditional=name == "cocoop"),
    )


def _init(backbone: Backbone, config: CoOpConfig, key: Array, frozen: Params) -> dict[str, Any]:
    """The context from N(0, init_std²), the network as PyTorch does."""
    del frozen
    context_key, network_key = jax.random.split(key)
    shape = (config.num_prompts, backbone.text_width)
    params: dict[str, Any] = {"context": init_normal(context_key, shape, std=config.init_std)}
    if isinstance(config, CoCoOpConfig):
        width = backbone.embed_dim
        hidden = max(width // config.reduction, 1)
        params["network"] = init_bottleneck(network_key, width, hidden, backbone.text_width)
    return params


def _import_params(state: Mapping[str, np.ndarray], *, conditional: bool) -> dict[str, Any]:
    """The context, and CoCoOp's network, in the authors' checkpoint.

    Raises:
      KeyError: when one is missing.
    """
    state = without_prefix(state)
    params: dict[str, Any] = {"context": np.asarray(state["ctx"])}
    if conditional:
        params["network"] = {
            ours: linear_from_torch(state, f"meta_net.{theirs}")
            for ours, theirs in (("first", "linear1"), ("second", "linear2"))
        }
    return params


def _prototypes(
    backbone: Backbone,
    config: CoOpConfig,
    frozen: Params,
    params: Params,
    class_names: Sequence[str],
) -> Prototypes:
    """The sentences of the classes and, unless images change them, their features."""
    words = (config.normal_word, config.abnormal_word)
    names = [f"{word} {clean_class_name(name)}" for name in class_names for word in words]
    ids, paddings = tokenize(backbone, [f"{name}." for name in names])
    check_length(backbone, paddings, config.num_prompts)
    embeddings = backbone.embed_tokens(frozen, ids)
    mask = jnp.zeros((*embeddings.shape[:2], 1))
    for part, rows in _places(backbone, config, names):
        context = params["context"][part].astype(embeddings.dtype)
        context = jnp.broadcast_to(context, (len(names), *context.shape))
        mask, _ = insert_tokens(mask, paddings, jnp.ones_like(context[..., :1]), at=rows)
        embeddings, paddings = insert_tokens(embeddings, paddings, context, at=rows)
    text = None
    if not isinstance(config, CoCoOpConfig):
        text = normalize(backbone.encode_prompts(frozen, embeddings, paddings))
        text = text.reshape(-1, 2, text.shape[-1])

    def pairs(x: Array | np.ndarray) -> Array:
        return jnp.asarray(x).reshape(len(class_names), 2, *x.shape[1:])

    return Prototypes(pairs(embeddings), pairs(paddings), pairs(mask[..., 0]), text)


def _places(
    backbone: Backbone, config: CoOpConfig, names: Sequence[str]
) -> list[tuple[slice, list[int]]]:
    """Parts of the context, and the row of each sentence at which the part is put in; last part first."""
    start, count = backbone.num_start_tokens, config.num_prompts
    if config.position == "end":
        return [(slice(count), [start] * len(names))]
    _, paddings = tokenize(backbone, ["", *names])
    lengths = (paddings == 0).sum(axis=1)
    behind = [start + int(length - lengths[0]) for length in lengths[1:]]
    half = count // 2 if config.position == "middle" else 0
    parts = [(slice(half, count), behind)]
    return [*parts, (slice(half), [start] * len(names))] if half else parts


def _texts(
    backbone: Backbone,
    config: CoOpConfig,
    frozen: Params,
    params: Params,
    prototypes: Prototypes,
    features: VisionFeatures,
    category: Int[Array, " b"],
) -> Float[Array, "b 2 d"]:
    """The (normal, abnormal) text features of each image: its class's, or CoCoOp's for it alone."""
    if prototypes.text is not None:
        return prototypes.text[category]

    def encode(token: Float[Array, " d"], own: Int[Array, ""]) -> Float[Array, "2 d"]:
        shift = bottleneck(params["network"], normalize(token))
        embeddings = prototypes.embeddings[own] + prototypes.is_context[own][..., None] * shift
        return backbone.encode_prompts(frozen, embeddings, prototypes.paddings[own])

    return normalize(jax.vmap(encode)(features.global_tokens[:, config.global_token], category))


def _loss(
    config: CoOpConfig,
    temperature: float,
    prototypes: Callable[..., Prototypes],
    texts: Callable[..., Float[Array, "b 2 d"]],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the image; with `local_loss` also focal and dice, summed over the layers."""
    features = losses.zero_invalid(features, batch.valid)
    sentences = prototypes(frozen, params, batch.class_names)
    text = texts(frozen, params, sentences, features, batch.category)
    logits = cosines(features.global_tokens[:, config.global_token], text) / temperature
    valid = batch.valid.astype(jnp.float32)
    terms = {"cross_entropy": losses.cross_entropy(logits, batch.labels, valid)}
    if config.local_loss:
        terms |= losses.layer_terms(cosine_softmax(features.patches, text, temperature), batch)
    return sum(terms.values()), terms  # type: ignore[return-value]
