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
from zsad_jax.methods.base import Batch, Method, Scores, check_extras
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.learner import STATES
from zsad_jax.methods.prompts import (
    FAMILIES,
    check_length,
    encode_pairs,
    ensemble,
    insert_tokens,
    tokenize,
)
from zsad_jax.methods.similarity import cosine_softmax, cosines, temperature_of

IMAGE_SCORES = ("first", "second")  # of the first and of the second global token
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
    if config.has_deep_tokens and backbone.num_start_tokens and config.n_deep > config.num_prompts:
        raise UserError(
            f"Config key 'n_deep' is {config.n_deep}, but over {backbone.name} deep tokens take the place"
            f" of the {config.num_prompts} learned ones; give at most as many."
        )
    temperature = temperature_of(backbone, config.temperature)
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
        features_key=((backbone.vision_depth,), None, True),
        works_untrained=True,
        import_params=import_params,
    )


def import_params(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The pair of prompts in the authors' list, or in a copy of it.

    Raises:
      KeyError: when there is none.
    """
    for keys in (STATES, ("normal_prompt", "abnormal_prompt"), ("0", "1")):
        if set(keys) <= set(state):
            return {name: state[key] for name, key in zip(STATES, keys, strict=True)}
    raise KeyError("a normal and an abnormal matrix")


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
        if config.learning == "entire_learnable":  # between start and end token alone
            pair = [""], [""]
        states = np.repeat([0, 1], [len(sentences) for sentences in pair])
        return *tokenize(backbone, [*pair[0], *pair[1]]), states

    def encode(frozen: Params, params: Params) -> Float[Array, "2 d"]:
        learned = jnp.stack([params[state] for state in STATES])
        start = backbone.num_start_tokens
        if config.learning == "entire_learnable" and not start:
            # All sentences of a state are the same learned tokens: one stands for all.
            states = np.array([0, 1])
            embeddings = learned[:, : backbone.text_length]
            paddings = np.zeros(embeddings.shape[:2], np.int32)
        else:
            ids, paddings, states = tokens()
            embeddings = backbone.embed_tokens(frozen, ids)
            if config.learning != "sumate":
                if start:  # an end token may not be cut off
                    check_length(backbone, paddings, config.num_prompts)
                embeddings, paddings = insert_tokens(
                    embeddings, paddings, learned[states], at=start, length=backbone.text_length
                )
            else:
                embeddings = _add_to_first(embeddings, learned[states], start)
        deep = None
        if config.has_deep_tokens:
            deep = jnp.stack([params[f"deep_{state}"] for state in STATES], axis=1)[:, states]
        features = backbone.encode_prompts(frozen, embeddings, paddings, deep_prompts=deep)
        return ensemble(features, states, 2)

    return encode


def _add_to_first(
    words: Float[Array, "t n e"], learned: Float[Array, "t p e"], start: int
) -> Float[Array, "t n e"]:
    """Learned tokens added to the first words ("sumate"); what falls on padding has no effect."""
    end = min(start + learned.shape[1], words.shape[1])
    return words.at[:, start:end].add(learned[:, : end - start].astype(words.dtype))


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
    check_extras("tipsomaly", extras, EXTRAS)
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
    images = cosine_softmax(features.global_tokens, text, temperature)
    valid = batch.valid.astype(jnp.float32)
    terms = {
        **losses.segmentation_terms(pixels, batch),
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
