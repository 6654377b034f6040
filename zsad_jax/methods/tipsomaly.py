"""TIPSomaly (TIPS Over Tricks, arXiv 2602.03594): decoupled prompts and local evidence.

The image score compares a global token with fixed prompts of the image's class, the anomaly map
compares the patches with a learned pair of prompts about an "object"; the strongest patch is added
to the image score.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.data.protocols import BRAIN
from zsad_jax.methods.base import Batch, Loss, Method, Scores, score_fn, vision_side
from zsad_jax.methods.shared import layers, learner, losses, prompts
from zsad_jax.methods.shared.config import TRAINING, VISION_DEPTH, Fields, Recipe, check_texts
from zsad_jax.methods.shared.learner import STATES
from zsad_jax.methods.shared.similarity import compare, same_for_each, scale_of
from zsad_jax.utils.config import config_from, within
from zsad_jax.utils.errors import UserError

IMAGE_SCORES = ("first", "second")  # of the first and of the second global token
# The published numbers were computed with the PyTorch files: exact GELU, LayerNorm epsilon 1e-5 on the text
# side, and a position grid that was resized to 32x32 before it is resized to the 37x37 of 518 pixels.
TIPS = {"name": "tips-l14-hr", "image_size": 518, "lineage": "pytorch", "posemb_stage": (32, 32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TIPSomalyConfig(learner.LearnerConfig):
    """Options of TIPSomaly; the defaults are those of the published numbers.

    Attributes:
      prompt_family: sentences of both the fixed and the learned prompts.
      learning: how learned tokens enter a sentence: in front of it, added to its first tokens,
        instead of it, or not at all.
      deep_prompts: "published": deep prompts have no effect, as in the published code (which appends them
        along the batch); "prepend": they are learned, separately for each state.
      decoupled: the image score uses the fixed prompts of the class; False: the learned pair.
      local_to_global: add the strongest patch probability to the image scores.
      lam: weight of the segmentation losses.
      cross_entropy_weight: of the cross-entropy of the image scores.
      l1_weight: of the sum of absolute values of the learned prototypes.
      learned_class_name: class name in the learned prompts.
      renormalized: over a sigmoid model (SigLIP), take the softmax of the probabilities of the two states, as
        the published code does over big_vision's files; False: as it does over Hugging Face's.
    """

    name: ClassVar[str] = "tipsomaly"
    title: ClassVar[str] = "TIPSomaly"
    recipe: ClassVar[Recipe] = Recipe(
        # The published order: class by class.
        training=TRAINING | {"epochs": 2, "shuffle": False},
        backbone=TIPS,
        # Of the token that synthetic captions trained; "first" is reported beside it.
        image_score="second",
        # Brain images are described in medical words, everything else in industrial ones.
        method_for={key: {"prompt_family": "medical"} for key in BRAIN},
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "n_deep": "num_deep_prompts",
        "d_deep": "deep_prompt_depth (d_deep + 1: it includes the first block)",
        "deep_tokens": "deep_prompts",
        "l1_lambda": "l1_weight",
        "cls_seg_loss": "lam and cross_entropy_weight (1.0, 0.0 for 'seg'; 0.0, 1.0 for 'cls')",
    }
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma", "decoupled", "local_to_global")
    # Fixed: the last block, with both global tokens scored.
    feature_layers: ClassVar[tuple[int, ...]] = (VISION_DEPTH,)  # type: ignore[misc]
    vv_from: ClassVar[None] = None  # type: ignore[misc]
    cls_norm: ClassVar[bool] = True  # type: ignore[misc]
    global_token: ClassVar[int] = 0  # type: ignore[misc]
    deep_prompts_float16: ClassVar[bool] = False  # type: ignore[misc]

    prompt_family: Literal["industrial", "medical", "object_agnostic"] = "industrial"
    learning: Literal["concat", "sumate", "entire_learnable", "none"] = "concat"
    num_prompts: int = within(8, 1)
    deep_prompts: Literal["published", "prepend"] = "published"
    num_deep_prompts: int = within(0, 0)
    decoupled: bool = True
    local_to_global: bool = True
    lam: float = within(1.0, 0)
    cross_entropy_weight: float = within(0.0, 0)
    l1_weight: float = within(0.0, 0)
    learned_class_name: str = "object"
    temperature: float | None = within(None, 1e-6)
    renormalized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_texts(self, "learned_class_name")


class Prototypes(NamedTuple):
    """Unit-norm (normal, anomalous) text features, compared with global tokens and with patches."""

    image: Float[Array, "c 2 d"]
    patches: Float[Array, "c 2 d"]


@functools.cache  # a run makes the method several times
def _warn_of_deep_prompts() -> None:
    logging.warning(
        "num_deep_prompts has no effect unless deep_prompts is 'prepend' and prompts are learned."
    )


def tipsomaly(backbone: Backbone, config: TIPSomalyConfig | Fields | None = None) -> Method:
    """Returns TIPSomaly over a backbone with patch tokens in the joint space.

    Its params are {"normal": [P, e], "abnormal": [P, e]}, with deep prompts also {"deep_normal",
    "deep_abnormal": [depth - 1, p, e]}, and {} when nothing is learned. Given {}, it uses the fixed
    prompts for both. Its extras are the fields of `similarity.Comparison`. With one global token there is no
    score "second".

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(TIPSomalyConfig, config)
    learns, num_deep = config.learning != "none", 0
    if learns and config.deep_prompts == "prepend":
        num_deep = learner.count_deep_blocks(backbone, config)
        learner.check_deep_prompts(backbone, config)
    elif config.num_deep_prompts:
        _warn_of_deep_prompts()
    scale = scale_of(backbone, config.temperature)._replace(renormalized=config.renormalized)
    family = prompts.PROMPT_FAMILIES[config.prompt_family]

    def init(key: Array, frozen: Params) -> Params:
        if not learns:
            return {}
        width = backbone.text_width
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (config.num_prompts, width))
        if num_deep:
            deep = (num_deep, config.num_deep_prompts, width)
            shapes |= {f"deep_{state}": deep for state in STATES}
        return layers.init_tokens(jax.random.split(key, len(shapes)), shapes, std=config.init_std)

    words = functools.cache(lambda: _tokenize(backbone, config))  # only when text is needed

    def encode_learned(frozen: Params, params: Params) -> Float[Array, "2 d"]:
        """Returns the unit-norm features of the learned (normal, anomalous) prompts."""
        learned = jnp.stack([params[state] for state in STATES])
        if config.learning == "entire_learnable" and not backbone.num_start_tokens:
            # All sentences of a state are the same learned tokens: one stands for all.
            embeddings = learned[:, : backbone.text_length]
            paddings, states = np.zeros(embeddings.shape[:2], np.int32), np.array([0, 1])
        else:
            ids, paddings, states = words()
            embeddings = backbone.embed_tokens(frozen, ids)
            embeddings, paddings = _add_learned(
                backbone, config, embeddings, paddings, learned[states]
            )
        deep = None
        if num_deep:
            deep = jnp.stack([params[f"deep_{state}"] for state in STATES], axis=1)[:, states]
        features = backbone.encode_prompts(frozen, embeddings, paddings, deep_prompts=deep)
        return prompts.ensemble(features, states, 2)

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Prototypes:
        """Returns the fixed pairs of the classes and the learned pair, where each is used."""
        if not params or not learns:
            return Prototypes(*[prompts.encode_pairs(backbone, frozen, family, class_names)] * 2)
        image = learned = same_for_each(encode_learned(frozen, params), len(class_names))
        if config.decoupled:
            image = prompts.encode_pairs(backbone, frozen, family, class_names)
        return Prototypes(image, learned)

    def compute(
        frozen: Params, params: Params, text: Prototypes, features: VisionFeatures
    ) -> Scores:
        """Returns image scores and patch probabilities [b, h, w, 1].

        s_k = p_a(v_k; G_image) + max_z p_a(z; G_patches), for the global tokens v_1 and v_2 and the patches z,
        with p(x; G) = softmax(cosines of x and the pair G / tau). The map is A p_a(z; G_patches) Bᵀ.

        The map is that of (1 - p_normal + p_anomalous) / 2, which equals p_anomalous where the two add up to 1.
        """
        found = compare(features.global_tokens, features.patches[:, -1], *text, scale)
        image, patches = found.global_probabilities[..., 1], found.patch_probabilities
        if config.local_to_global:
            # Of the patches as they are, before up-sampling and smoothing; a sum, so that scores are in [0, 2].
            image = image + patches[..., 1].max(axis=(1, 2))[:, None]
        return Scores(
            dict(zip(IMAGE_SCORES, image.T, strict=False)),
            found.patch_scores[..., None],
            found._asdict(),
        )

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        """Returns lam (focal + dice) of the unsmoothed map + weighted cross-entropy and L1.

        Every term is returned for the log, those of weight 0 too. The cross-entropy takes probabilities
        for logits, as the published code does.
        """
        if not params:
            raise UserError(
                "Nothing can be trained with learning='none'. Use another value, for example learning='concat'."
            )
        pair = encode_learned(frozen, params)
        text, patches = same_for_each(pair, len(batch.labels)), features.patches[:, -1]
        found = compare(features.global_tokens, patches, text, text, scale)
        local = losses.segmentation_terms(found.patch_probabilities, batch)
        # These are probabilities already, of which the published code takes the log-softmax again.
        image = losses.image_cross_entropy(found.global_probabilities, batch)
        l1 = jnp.abs(pair).sum()
        total: Array = config.l1_weight * l1
        # A term of weight 0 is not part of the total, so that it has no gradient to compute.
        if config.lam:
            total += config.lam * sum(local.values())
        if config.cross_entropy_weight:
            total += config.cross_entropy_weight * image
        return total, {**local, "cross_entropy": image, "l1": l1}

    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 2.0 if config.local_to_global else 1.0),
        loss=loss,
        # The second token, which synthetic captions trained, comes first where there is one.
        image_scores=IMAGE_SCORES[: backbone.num_global_tokens][::-1],
        works_untrained=True,
        import_params=import_params,
        **vision_side(backbone, config),
    )


def _tokenize(
    backbone: Backbone, config: TIPSomalyConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids, paddings and state (0, 1) of every sentence around learned tokens."""
    pair = prompts.PROMPT_FAMILIES[config.prompt_family].sentences(config.learned_class_name)
    if config.learning == "entire_learnable":  # between start and end token alone
        pair = [""], [""]
    states = np.repeat([0, 1], [len(sentences) for sentences in pair])
    return *prompts.tokenize(backbone, [*pair[0], *pair[1]]), states


def _add_learned(
    backbone: Backbone,
    config: TIPSomalyConfig,
    embeddings: Float[Array, "t n e"],
    paddings: np.ndarray,
    learned: Float[Array, "t p e"],
) -> tuple[Float[Array, "t m e"], np.ndarray]:
    """Returns embeddings and paddings of sentences with the learned tokens of each."""
    start = backbone.num_start_tokens
    if config.learning == "sumate":  # only SigLIP reads what is added to padding
        end = min(start + learned.shape[1], embeddings.shape[1])
        added = learned[:, : end - start].astype(embeddings.dtype)
        return embeddings.at[:, start:end].add(added), paddings
    # Over TIPS the last tokens of a long sentence make room for the learned ones, as published.
    if start:  # an end token may not be cut off
        prompts.check_length(backbone, paddings, config.num_prompts)
    return prompts.insert_tokens(
        embeddings, paddings, learned, at=start, length=backbone.text_length
    )


def import_params(state: Arrays) -> Params:
    """Reads the pair of prompts from the authors' list, or from a copy of it."""
    for keys in (STATES, ("normal_prompt", "abnormal_prompt"), ("0", "1")):
        if set(keys) <= set(state):
            return {name: state[key] for name, key in zip(STATES, keys, strict=True)}
    raise KeyError("a normal and an anomalous matrix")
