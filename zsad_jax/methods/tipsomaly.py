"""TIPSomaly (TIPS Over Tricks, arXiv 2602.03594): decoupled prompts and local evidence.

The image score compares a global token with fixed prompts of the image's class, the anomaly map
compares the patches with a learned pair of prompts about an "object"; the strongest patch is added
to the image score.
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
from zsad_jax.methods.base import Batch, Method, Scores
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.prompts import FAMILIES, encode_pairs, ensemble, tokenize
from zsad_jax.methods.similarity import cosine_softmax, cosines

IMAGE_SCORES = ("first", "second")  # of the first and of the second global token
STATES = ("normal", "abnormal")  # index 0 and 1 everywhere
EXTRAS = ("global_cosines", "global_probabilities", "patch_cosines", "patch_probabilities")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TIPSomalyConfig:
    """The switches of TIPSomaly; the defaults made the published numbers.

    Attributes:
      prompt_family: the sentences, of the fixed and of the learned prompts alike.
      learning: how learned tokens enter a sentence: in front of it, added to its first tokens,
        instead of it, or not at all.
      num_prompts: P, learned tokens per state.
      deep_tokens: what `n_deep` and `d_deep` mean: "published" is without effect, as in the
        published code (which appends the tokens along the batch); "prepend" learns `n_deep` tokens
        in front of the input of each of the `d_deep` text blocks after the first.
      n_deep: deep tokens per block.
      d_deep: blocks that have deep tokens.
      decoupled: the image score uses the fixed prompts of the class; False: the learned pair.
      local_to_global: the strongest patch probability is added to the image scores.
      sigma: of the map's Gaussian, in pixels of the map; 0 does not smooth.
      cls_seg_loss: train on the segmentation losses, on the images' cross-entropy, or on both.
      l1_lambda: weight of the sum of absolute values of the learned prototypes.
      learned_class_name: what the learned prompts speak of.
      temperature: divides the cosine; None is the backbone's own.
      init_std: of the learned tokens' initial normal distribution.
    """

    prompt_family: Literal["industrial", "medical", "object_agnostic"] = "industrial"
    learning: Literal["concat", "sumate", "entire_learnable", "none"] = "concat"
    num_prompts: int = within(8, 1)
    deep_tokens: Literal["published", "prepend"] = "published"
    n_deep: int = within(0, 0)
    d_deep: int = within(0, 0)
    decoupled: bool = True
    local_to_global: bool = True
    sigma: float = within(4.0, 0)
    cls_seg_loss: Literal["seg", "cls", "both"] = "seg"
    l1_lambda: float = within(0.0, 0)
    learned_class_name: str = "object"
    temperature: float | None = within(None, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def has_deep_tokens(self) -> bool:
        """Whether deep tokens are learned."""
        learned = self.learning != "none" and self.deep_tokens == "prepend"
        return learned and self.n_deep > 0 and self.d_deep > 0


class Prototypes(NamedTuple):
    """Unit-norm (normal, abnormal) text features of each category.

    Attributes:
      image: what global tokens are compared with.
      patches: what patch tokens are compared with.
    """

    image: Float[Array, "c 2 d"]
    patches: Float[Array, "c 2 d"]


def tipsomaly(
    backbone: Backbone, config: TIPSomalyConfig | Mapping[str, Any] | None = None
) -> Method:
    """TIPSomaly over a backbone.

    Args:
      backbone: any with patch tokens in the joint space; with one global token there is no score
        "second".
      config: the switches, or a mapping of them; None: the published setting.

    Returns:
      A method whose params are {"normal": [P, e], "abnormal": [P, e]}, with deep tokens also
      {"deep_normal", "deep_abnormal": [d_deep, n_deep, e]}, and {} when nothing is learned. Given
      {}, it uses the fixed prompts for both. `score` takes `extras`, names out of `EXTRAS`.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(TIPSomalyConfig, config)
    if config.has_deep_tokens and config.d_deep >= backbone.text_depth:
        raise UserError(
            f"Config key 'd_deep' is {config.d_deep}, but the first of the text tower's"
            f" {backbone.text_depth} blocks takes no deep tokens; give at most"
            f" {backbone.text_depth - 1}."
        )
    temperature = backbone.temperature if config.temperature is None else config.temperature
    encode_learned = _learned_encoder(backbone, config)
    return Method(
        name="tipsomaly",
        config=config,
        init=functools.partial(_init, config, backbone.text_width),
        features=lambda frozen, params, images: backbone.encode_image(frozen, images),
        prototypes=functools.partial(_prototypes, backbone, config, encode_learned),
        score=functools.partial(_score, config, temperature),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_loss, config, temperature, encode_learned),
        groups=lambda params: jax.tree.map(lambda _: "prompts", params),
        # The second token, which synthetic captions trained, comes first where there is one.
        image_scores=IMAGE_SCORES[: backbone.num_global_tokens][::-1],
        features_key="last layer",
    )


def _init(
    config: TIPSomalyConfig, width: int, key: Array, frozen: Params
) -> dict[str, Float[Array, "..."]]:
    """Learned tokens from N(0, init_std²)."""
    del frozen
    if config.learning == "none":
        return {}
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (config.num_prompts, width))
    if config.has_deep_tokens:
        shapes |= {f"deep_{state}": (config.d_deep, config.n_deep, width) for state in STATES}
    keys = jax.random.split(key, len(shapes))
    return {
        name: config.init_std * jax.random.normal(one, shape)
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _learned_encoder(
    backbone: Backbone, config: TIPSomalyConfig
) -> Callable[[Params, Params], Float[Array, "2 d"]]:
    """The function (frozen, params) -> the learned (normal, abnormal) prototypes, unit norm."""

    @functools.lru_cache(maxsize=1)
    def tokens() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, paddings and state (0, 1) of every sentence; tokenised once, when needed."""
        pair = FAMILIES[config.prompt_family].sentences(config.learned_class_name)
        states = np.repeat([0, 1], [len(sentences) for sentences in pair])
        return *tokenize(backbone, [*pair[0], *pair[1]]), states

    def encode(frozen: Params, params: Params) -> Float[Array, "2 d"]:
        learned = jnp.stack([params[state] for state in STATES])
        if config.learning == "entire_learnable":
            # All sentences of a state are the same learned tokens: one stands for all.
            states = np.array([0, 1])
            embeddings = learned[:, : backbone.text_length]
            paddings = np.zeros(embeddings.shape[:2], np.int32)
        else:
            ids, paddings, states = tokens()
            words = backbone.embed_tokens(frozen, ids)
            insert = _put_in_front if config.learning == "concat" else _add_to_first
            embeddings, paddings = insert(words, paddings, learned[states], backbone.text_length)
        deep = None
        if config.has_deep_tokens:
            deep = jnp.stack([params[f"deep_{state}"] for state in STATES], axis=1)[:, states]
        features = backbone.encode_prompts(frozen, embeddings, paddings, deep_prompts=deep)
        return ensemble(features, states, 2)

    return encode


def _put_in_front(
    words: Float[Array, "t n e"],
    paddings: Int[np.ndarray, "t n"],
    learned: Float[Array, "t p e"],
    length: int,
) -> tuple[Float[Array, "t m e"], Int[np.ndarray, "t m"]]:
    """Learned tokens before the words, cut at the text length as in the published code."""
    valid = np.zeros(learned.shape[:2], paddings.dtype)
    embeddings = jnp.concatenate([learned, words], axis=1)[:, :length]
    return embeddings, np.concatenate([valid, paddings], axis=1)[:, :length]


def _add_to_first(
    words: Float[Array, "t n e"],
    paddings: Int[np.ndarray, "t n"],
    learned: Float[Array, "t p e"],
    length: int,
) -> tuple[Float[Array, "t n e"], Int[np.ndarray, "t n"]]:
    """Learned tokens added to the first words ("sumate"); what falls on padding has no effect."""
    del length
    count = min(learned.shape[1], words.shape[1])
    return words.at[:, :count].add(learned[:, :count].astype(words.dtype)), paddings


def _prototypes(
    backbone: Backbone,
    config: TIPSomalyConfig,
    encode_learned: Callable[[Params, Params], Float[Array, "2 d"]],
    frozen: Params,
    params: Params,
    class_names: Sequence[str],
) -> Prototypes:
    """Fixed pairs of the classes and the learned pair, where each is used."""

    def fixed() -> Float[Array, "c 2 d"]:
        return encode_pairs(backbone, frozen, FAMILIES[config.prompt_family], class_names)

    if not params or config.learning == "none":
        return Prototypes(*[fixed()] * 2)
    learned = encode_learned(frozen, params)
    learned = jnp.broadcast_to(learned, (len(class_names), *learned.shape))
    return Prototypes(image=fixed() if config.decoupled else learned, patches=learned)


def _score(
    config: TIPSomalyConfig,
    temperature: float,
    frozen: Params,
    params: Params,
    prototypes: Prototypes,
    features: VisionFeatures,
    category: Int[Array, " b"],
    *,
    extras: Collection[str] = (),
) -> Scores:
    """Image scores and patch probabilities [b, h, w, 1]; the published map is linear in the latter.

    The published map, (1 - p_normal + p_abnormal) / 2 up-sampled and smoothed, is that of
    p_abnormal alone, since the two add up to 1.
    """
    del frozen, params
    _check_extras(extras)
    image_text, patch_text = prototypes.image[category], prototypes.patches[category]
    tokens, patches = features.global_tokens, features.patches[:, -1]
    global_probabilities = cosine_softmax(tokens, image_text, temperature)
    patch_probabilities = cosine_softmax(patches, patch_text, temperature)
    image = global_probabilities[..., 1]
    if config.local_to_global:
        image = image + patch_probabilities[..., 1].max(axis=(1, 2))[:, None]
    computed = {
        "global_cosines": lambda: cosines(tokens, image_text),
        "global_probabilities": lambda: global_probabilities,
        "patch_cosines": lambda: cosines(patches, patch_text),
        "patch_probabilities": lambda: patch_probabilities,
    }
    return Scores(
        image={name: image[:, i] for i, name in enumerate(IMAGE_SCORES[: image.shape[1]])},
        patches=patch_probabilities[..., 1:],
        extras={name: computed[name]() for name in extras},
    )


def _check_extras(extras: Collection[str]) -> None:
    for name in extras:
        if name not in EXTRAS:
            raise UserError(
                f"Method 'tipsomaly' has no extra '{name}'; there are: {', '.join(EXTRAS)}."
            )


def _loss(
    config: TIPSomalyConfig,
    temperature: float,
    encode_learned: Callable[[Params, Params], Float[Array, "2 d"]],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Focal and dice losses of the unsmoothed map, cross-entropy of the image scores, L1.

    Every term is returned for the log; `cls_seg_loss` and `l1_lambda` say which are learned from.
    The cross-entropy takes probabilities for logits, as the published code does.
    """
    if not params:
        raise UserError(
            "Nothing can be trained with learning='none'; choose learning='concat', say."
        )
    features = losses.zero_invalid(features, batch.valid)
    pair = encode_learned(frozen, params)
    count = batch.labels.shape[0]
    text = jnp.broadcast_to(pair, (count, *pair.shape))

    probabilities = cosine_softmax(features.patches[:, -1], text, temperature)
    pixels = anomaly_map.upsample(probabilities, (batch.masks.shape[1], batch.masks.shape[2]))
    rows = losses.segmentation_rows(batch).astype(jnp.float32)
    images = cosine_softmax(features.global_tokens, text, temperature)
    valid = batch.valid.astype(jnp.float32)
    terms = {
        "focal": losses.focal_loss(pixels, batch.masks, rows),
        "dice_abnormal": losses.dice_loss(pixels[..., 1], batch.masks, rows),
        "dice_normal": losses.dice_loss(pixels[..., 0], 1 - batch.masks, rows),
        "cross_entropy": jnp.stack(
            [losses.cross_entropy(token, batch.labels, valid) for token in images.swapaxes(0, 1)]
        ).sum(),
        "l1": jnp.abs(pair).sum(),
    }
    total: Array = config.l1_lambda * terms["l1"]
    if config.cls_seg_loss in ("seg", "both"):
        total += terms["focal"] + terms["dice_abnormal"] + terms["dice_normal"]
    if config.cls_seg_loss in ("cls", "both"):
        total += terms["cross_entropy"]
    return total, terms
