"""TIPSomaly (TIPS Over Tricks, arXiv 2602.03594): decoupled prompts and local evidence.

The image score compares a global token with fixed prompts of the image's class, the anomaly map
compares the patches with a learned pair of prompts about an "object"; the strongest patch is added
to the image score.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods.base import Batch, Method, Scores, scorer, vision_side
from zsad_jax.methods.shared import losses
from zsad_jax.methods.shared.blocks import VISION_DEPTH
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.methods.shared.layers import init_tokens
from zsad_jax.methods.shared.learner import STATES
from zsad_jax.methods.shared.pair_score import COMPARED, compare
from zsad_jax.methods.shared.prompts import (
    FAMILIES,
    check_deep_prompts,
    check_length,
    encode_pairs,
    ensemble,
    insert_tokens,
    tokenize,
)
from zsad_jax.methods.shared.similarity import repeat, temperature_of
from zsad_jax.utils.config import config_from, within
from zsad_jax.utils.errors import UserError

IMAGE_SCORES = ("first", "second")  # of the first and of the second global token


@dataclasses.dataclass(frozen=True, kw_only=True)
class TIPSomalyConfig(MethodConfig):
    """Options of TIPSomaly; the defaults are those of the published numbers.

    Attributes:
      prompt_family: sentences of both the fixed and the learned prompts.
      learning: how learned tokens enter a sentence: in front of it, added to its first tokens,
        instead of it, or not at all.
      num_prompts: P, learned tokens per state.
      deep_tokens: effect of `n_deep` and `d_deep`: "published" has none, like the published code
        (which appends the tokens along the batch); "prepend" learns `n_deep` tokens in front of
        the input of each of the `d_deep` text blocks after the first.
      n_deep: deep tokens per block.
      d_deep: blocks that have deep tokens.
      decoupled: the image score uses the fixed prompts of the class; False: the learned pair.
      local_to_global: add the strongest patch probability to the image scores.
      cls_seg_loss: train on the segmentation losses, on the images' cross-entropy, or on both.
      l1_lambda: weight of the sum of absolute values of the learned prototypes.
      learned_class_name: class name in the learned prompts.
    """

    # Fixed: the last block, with both global tokens scored.
    feature_layers: ClassVar[tuple[int, ...]] = (VISION_DEPTH,)  # type: ignore[misc]
    vv_from: ClassVar[None] = None  # type: ignore[misc]
    cls_norm: ClassVar[bool] = True  # type: ignore[misc]
    global_token: ClassVar[int] = 0  # type: ignore[misc]

    prompt_family: Literal["industrial", "medical", "object_agnostic"] = "industrial"
    learning: Literal["concat", "sumate", "entire_learnable", "none"] = "concat"
    num_prompts: int = within(8, 1)
    deep_tokens: Literal["published", "prepend"] = "published"
    n_deep: int = within(0, 0)
    d_deep: int = within(0, 0)
    decoupled: bool = True
    local_to_global: bool = True
    cls_seg_loss: Literal["seg", "cls", "both"] = "seg"
    l1_lambda: float = within(0.0, 0)
    learned_class_name: str = "object"
    temperature: float | None = within(None, 1e-6)

    @property
    def has_deep_tokens(self) -> bool:
        """Whether deep tokens are learned."""
        learned = self.learning != "none" and self.deep_tokens == "prepend"
        return learned and self.n_deep > 0 and self.d_deep > 0


class Prototypes(NamedTuple):
    """Unit-norm (normal, abnormal) text features of each category.

    Attributes:
      image: compared with global tokens.
      patches: compared with patch tokens.
    """

    image: Float[Array, "c 2 d"]
    patches: Float[Array, "c 2 d"]


def tipsomaly(
    backbone: Backbone, config: TIPSomalyConfig | Mapping[str, Any] | None = None
) -> Method:
    """Returns TIPSomaly over a backbone with patch tokens in the joint space.

    Its params are {"normal": [P, e], "abnormal": [P, e]}, with deep tokens also {"deep_normal",
    "deep_abnormal": [d_deep, n_deep, e]}, and {} when nothing is learned. Given {}, it uses the fixed
    prompts for both. Its extras are `pair_score.COMPARED`. With one global token there is no score "second".

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(TIPSomalyConfig, config)
    if config.has_deep_tokens:
        if config.d_deep >= backbone.text_depth:
            raise UserError(
                f"Config key 'd_deep' is {config.d_deep}, but the first of the text tower's"
                f" {backbone.text_depth} blocks takes no deep tokens; give at most"
                f" {backbone.text_depth - 1}."
            )
        check_deep_prompts(backbone, config.n_deep, config.num_prompts, key="n_deep")
    temperature = temperature_of(backbone, config.temperature)
    family = FAMILIES[config.prompt_family]

    def init(key: Array, frozen: Params) -> Params:
        del frozen
        if config.learning == "none":
            return {}
        width = backbone.text_width
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (config.num_prompts, width))
        if config.has_deep_tokens:
            shapes |= {f"deep_{state}": (config.d_deep, config.n_deep, width) for state in STATES}
        return init_tokens(jax.random.split(key, len(shapes)), shapes, std=config.init_std)

    @functools.cache  # needs a tokenizer only when used
    def tokens() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids, paddings and state (0, 1) of every sentence around learned tokens."""
        pair = family.sentences(config.learned_class_name)
        if config.learning == "entire_learnable":  # between start and end token alone
            pair = [""], [""]
        states = np.repeat([0, 1], [len(sentences) for sentences in pair])
        return *tokenize(backbone, [*pair[0], *pair[1]]), states

    def encode_learned(frozen: Params, params: Params) -> Float[Array, "2 d"]:
        """Returns the unit-norm features of the learned (normal, abnormal) prompts."""
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
            if config.learning == "sumate":  # what falls on padding has no effect
                end = min(start + learned.shape[1], embeddings.shape[1])
                added = learned[states][:, : end - start].astype(embeddings.dtype)
                embeddings = embeddings.at[:, start:end].add(added)
            else:
                if start:  # an end token may not be cut off
                    check_length(backbone, paddings, config.num_prompts)
                embeddings, paddings = insert_tokens(
                    embeddings, paddings, learned[states], at=start, length=backbone.text_length
                )
        deep = None
        if config.has_deep_tokens:
            deep = jnp.stack([params[f"deep_{state}"] for state in STATES], axis=1)[:, states]
        features = backbone.encode_prompts(frozen, embeddings, paddings, deep_prompts=deep)
        return ensemble(features, states, 2)

    def prototypes(frozen: Params, params: Params, class_names: Sequence[str]) -> Prototypes:
        """Returns the fixed pairs of the classes and the learned pair, where each is used."""

        def fixed() -> Float[Array, "c 2 d"]:
            return encode_pairs(backbone, frozen, family, class_names)

        if not params or config.learning == "none":
            return Prototypes(*[fixed()] * 2)
        learned = repeat(encode_learned(frozen, params), len(class_names))
        return Prototypes(image=fixed() if config.decoupled else learned, patches=learned)

    def compute(
        frozen: Params,
        params: Params,
        prototypes: Prototypes,
        features: VisionFeatures,
        category: Int[Array, " b"],
    ) -> Scores:
        """Returns image scores and patch probabilities [b, h, w, 1].

        The published map, (1 - p_normal + p_abnormal) / 2 up-sampled and smoothed, is that of
        p_abnormal alone, since the two add up to 1.
        """
        del frozen, params
        texts = (prototypes.image[category], prototypes.patches[category])
        found = compare(features.global_tokens, features.patches[:, -1], *texts, temperature)
        image, patches = found["global_probabilities"][..., 1], found["patch_probabilities"]
        if config.local_to_global:
            image = image + patches[..., 1].max(axis=(1, 2))[:, None]
        named = zip(IMAGE_SCORES, image.T, strict=False)
        return Scores(image=dict(named), patches=patches[..., 1:], extras=found)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> losses.Loss:
        """Returns focal and dice losses of the unsmoothed map, cross-entropy of the image scores, and L1.

        Every term is returned for the log; `cls_seg_loss` and `l1_lambda` select what is learned from.
        The cross-entropy takes probabilities for logits, as the published code does.
        """
        if not params:
            raise UserError(
                "Nothing can be trained with learning='none'; choose learning='concat', say."
            )
        features = losses.zero_invalid(features, batch.valid)
        pair = encode_learned(frozen, params)
        text, patches = repeat(pair, len(batch.labels)), features.patches[:, -1]
        found = compare(features.global_tokens, patches, text, text, temperature)
        segmentation = losses.segmentation_terms(found["patch_probabilities"], batch)
        image = losses.image_cross_entropy(found["global_probabilities"], batch)
        terms = {**segmentation, "cross_entropy": image, "l1": jnp.abs(pair).sum()}
        total: Array = config.l1_lambda * terms["l1"]
        if config.cls_seg_loss != "cls":
            total += sum(segmentation.values())
        if config.cls_seg_loss != "seg":
            total += image
        return total, terms

    return Method(
        name="tipsomaly",
        config=config,
        init=init,
        prototypes=prototypes,
        score=scorer("tipsomaly", COMPARED, compute),
        loss=loss,
        # The second token, which synthetic captions trained, comes first where there is one.
        image_scores=IMAGE_SCORES[: backbone.num_global_tokens][::-1],
        works_untrained=True,
        import_params=import_params,
        **vision_side(backbone, config),
    )


def import_params(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reads the pair of prompts from the authors' list, or from a copy of it."""
    for keys in (STATES, ("normal_prompt", "abnormal_prompt"), ("0", "1")):
        if set(keys) <= set(state):
            return {name: state[key] for name, key in zip(STATES, keys, strict=True)}
    raise KeyError("a normal and an abnormal matrix")
