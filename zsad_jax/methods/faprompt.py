"""FAPrompt (Fine-grained Abnormality Prompt Learning, ICCV 2025): compound prompts with an image's prior.

Several anomalous prompts share the tokens of the normal one and have a few tokens of their own (CAP). In a
second stage an offset, computed from patches of the image, is added to those (DAP).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, Tokens, VisionFeatures
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.methods.base import Batch, Loss, Method, Scores, Terms, score_fn, vision_side
from zsad_jax.methods.shared import layers, learner, losses, prompts
from zsad_jax.methods.shared.config import MAX_SIGMA, TRAINING, VISION_DEPTH, Fields, Recipe
from zsad_jax.methods.shared.similarity import compare, cosines, normalize, same_for_each, scale_of
from zsad_jax.utils.config import config_from, within

IMAGE_SCORES = ("combined", "global", "patch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FAPromptConfig(learner.LearnerConfig):
    """Options of FAPrompt; the defaults are those of the published numbers.

    Attributes:
      compound: anomalous prompts share the normal tokens (CAP); False: AnomalyCLIP's two prompts.
      prior: the second stage, conditioned on the image (DAP); False: there is only the first stage.
      num_prompts: learned tokens of the normal prompt, shared by the anomalous ones.
      num_own_prompts: further tokens of each anomalous prompt.
      num_abnormal: K, anomalous prompts.
      num_separate_prompts: learned tokens of each of the two prompts, without `compound`.
      num_selected: M, patches that the prior is computed from; an image may have fewer.
      dap_select: the first M patches in raster order, as the published code does (the image's top edge), or
        the M most anomalous ones, as the paper says.
      reduction: ratio of the width of the prior network's input to that of its hidden layer.
      normal_text, abnormal_text: the words after the learned tokens; in the paper both are "object.".
      num_deep_prompts: where they replace tokens, more than `num_prompts` of them also replace words, as
        published.
      max_scores: weights of the stages' strongest patches in the image score: as coded, or as in the paper.
      lam, lam_stage2: weights of the segmentation losses of the first and of the second stage.
      cross_entropy_weight: of the global token's cross-entropy.
      image_focal_weight: of the focal loss of the combined image score.
      orthogonality_weight: of the absolute cosines between anomalous prompts.
      prior_weight: of the squared prior of normal images.
    """

    name: ClassVar[str] = "faprompt"
    title: ClassVar[str] = "FAPrompt"
    recipe: ClassVar[Recipe] = Recipe(TRAINING | {"epochs": 7}, image_score="combined")
    renamed: ClassVar[Mapping[str, str]] = {
        "normal_length": "num_prompts",
        "abnormal_length": "num_own_prompts",
        "separate_length": "num_separate_prompts",
        "prior_reduction": "reduction",
        "local1_weight": "lam",
        "local2_weight": "lam_stage2",
    }
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma",)
    feature_layers: ClassVar[tuple[int, ...]] = (VISION_DEPTH,)  # type: ignore[misc]

    compound: bool = True
    prior: bool = True
    num_prompts: int = within(5, 1)
    num_own_prompts: int = within(2, 1)
    num_abnormal: int = within(10, 1)
    num_separate_prompts: int = within(12, 1)
    num_selected: int = within(10, 1)
    dap_select: Literal["first", "topk"] = "first"
    reduction: int = within(16, 1)
    normal_text: str = "object."
    abnormal_text: str = "damaged object."
    vv_from: int | None = within(6, 1, VISION_DEPTH)
    cls_norm: bool = False
    max_scores: Literal["2:1", "mean"] = "2:1"
    lam: float = within(1.0, 0)
    lam_stage2: float = within(0.5, 0)
    cross_entropy_weight: float = within(1.0, 0)
    image_focal_weight: float = within(1.0, 0)
    orthogonality_weight: float = within(0.1, 0)
    prior_weight: float = within(1.0, 0)
    sigma: float = within(10.0, 0, MAX_SIGMA)


class Prototypes(NamedTuple):
    """Raw text features of the normal prompt and of the K anomalous ones, without an image's prior."""

    normal: Float[Array, "c d"]
    anomalous: Float[Array, "c k d"]

    def pair(self) -> Float[Array, "c 2 d"]:
        """Returns unit-norm (normal, anomalous); the latter is the plain mean of the prompts."""
        return normalize(jnp.stack([self.normal, self.anomalous.mean(axis=1)], axis=1))


class StageComparison(NamedTuple):
    """Patch probabilities of (normal, anomalous) in the one or two stages, image scores and extras by name."""

    stages: Float[Array, "stages b h w 2"]
    image: dict[str, Float[Array, " b"]]
    extras: dict[str, Float[Array, "b ..."]]


def faprompt(backbone: Backbone, config: FAPromptConfig | Fields | None = None) -> Method:
    """Returns FAPrompt over a backbone with patch tokens in the joint space.

    The prompts are [v_1] ... [v_P] "object." and, for k = 1 ... K, [v_1] ... [v_P] [w_k1 + Omega] ... [w_kA +
    Omega] "damaged object.", with v and w learned and Omega = 0 in the first stage. In the second, Omega =
    relu(z W_1 + b_1) W_2 + b_2, where z are the M selected patches of the image in one row.

    Its params are {"normal": [P, e], "abnormal": [K, A, e]}, with deep prompts also {"deep": [depth - 1, p,
    e]}, with the prior also {"prior": two linear layers}. Image scores: "global" of the global token (that of
    AnomalyCLIP), "patch" of the strongest patches, and "combined", their mean. Its extras are
    "stage1_probabilities", "image_logits", "prompt_cosines", "text_features" and, with the prior,
    "stage2_probabilities" and "prior".

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(FAPromptConfig, config)
    scale = scale_of(backbone, config.temperature)
    num_normal = config.num_prompts if config.compound else config.num_separate_prompts
    # Only when text is needed.
    words = functools.cache(lambda: _tokenize(backbone, config, num_normal))

    def init(key: Array, frozen: Params) -> Params:
        """Returns new params: tokens from N(0, init_std²), and a prior network in PyTorch's default range."""
        learner_key, anomalous_key, prior_key = jax.random.split(key, 3)
        width, num_deep = backbone.text_width, learner.count_deep_blocks(backbone, config)
        # The second key, with which `init_learner` draws anomalous tokens, is unused: these have another shape.
        normal_key, _, *deep_key = jax.random.split(learner_key, 3 if num_deep else 2)
        shapes: dict[str, tuple[int, ...]] = {
            "normal": (num_normal, width),
            "abnormal": (1, num_normal, width),
        }
        if config.compound:
            shapes["abnormal"] = config.num_abnormal, config.num_own_prompts, width
        if num_deep:
            shapes["deep"] = num_deep, config.num_deep_prompts, width
        keys = normal_key, anomalous_key, *deep_key
        params: Params = layers.init_tokens(keys, shapes, std=config.init_std)
        if config.prior:
            inputs = config.num_selected * backbone.embed_dim
            hidden = max(inputs // config.reduction, 1)
            params["prior"] = layers.init_bottleneck(prior_key, inputs, hidden, width)
        return params

    def encode(
        frozen: Params, params: Params, tokens: Tokens, context: Float[Array, "t p e"]
    ) -> Float[Array, "t d"]:
        """Returns the raw features of the same words after each context."""
        ids, paddings = (np.repeat(array, len(context), axis=0) for array in tokens)
        deep = params["deep"][:, None] if "deep" in params else None
        if deep is not None and config.deep_prompts_float16:
            deep = layers.round_to_float16(deep)
        repeated = (ids, paddings)
        return prompts.encode_with_context(backbone, frozen, repeated, context, deep_prompts=deep)

    def encode_anomalous(
        frozen: Params, params: Params, prior: Float[Array, " e"] | None = None
    ) -> Float[Array, "k d"]:
        """Returns the raw features of the anomalous prompts, whose own tokens the prior shifts."""
        context = params["abnormal"] if prior is None else params["abnormal"] + prior
        if config.compound:
            # The shared tokens are joined afterwards, so that the prior does not shift them.
            shared = same_for_each(params["normal"], len(context))
            context = jnp.concatenate([shared, context], axis=1)
        return encode(frozen, params, words()[1], context)

    def encode_both(frozen: Params, params: Params, count: int) -> Prototypes:
        """Returns the features of the prompts without a prior, the same for `count` categories or images."""
        normal = encode(frozen, params, words()[0], params["normal"][None])[0]
        anomalous = encode_anomalous(frozen, params)
        return Prototypes(same_for_each(normal, count), same_for_each(anomalous, count))

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Prototypes:
        return encode_both(frozen, params, len(class_names))

    def compare_stages(
        frozen: Params, params: Params, text: Prototypes, features: VisionFeatures
    ) -> StageComparison:
        """Compares each image with the texts of its category, in both stages.

        The combined score is (q + m) / 2, with q = p_a(f) of the global token and, by default, m = (2 m_1 +
        m_2) / 3 with m_i = max_z p_a(z) of the patches z in stage i.
        """
        tokens, patches = features.global_tokens[:, config.global_token], features.patches[:, -1]
        pair, extras = text.pair(), {}
        found = compare(tokens, patches, pair, pair, scale)
        stages = found.patch_probabilities[None]
        if config.prior:
            priors = jax.vmap(functools.partial(_prior, config, params["prior"]))
            # Each image has its own prompts here: K texts per image are encoded.
            prior = priors(patches, stages[0, ..., 1])
            anomalous = jax.vmap(functools.partial(encode_anomalous, frozen, params))(prior)
            text = text._replace(anomalous=anomalous)
            pair = text.pair()
            found = compare(tokens, patches, pair, pair, scale)
            extras = {"prior": prior, "stage2_probabilities": found.patch_probabilities}
            stages = jnp.concatenate([stages, found.patch_probabilities[None]])
        # The global token is compared with the prompts of the last stage alone.
        of_image = found.global_probabilities[:, 1]
        # The published code weighs the first stage twice: (2 m1 + m2) / 3.
        weights = np.array((2, 1) if config.max_scores == "2:1" else (1, 1))[: len(stages)]
        of_patches = jnp.average(stages[..., 1].max(axis=(2, 3)), axis=0, weights=weights)
        values = (of_image + of_patches) / 2, of_image, of_patches
        extras |= {
            "stage1_probabilities": stages[0],
            "image_logits": found.global_logits,
            "prompt_cosines": cosines(patches, text.anomalous),
            "text_features": pair,
        }
        return StageComparison(stages, dict(zip(IMAGE_SCORES, values, strict=True)), extras)

    def compute(
        frozen: Params, params: Params, text: Prototypes, features: VisionFeatures
    ) -> Scores:
        """Returns image scores, and patch probabilities [b, h, w, 1]: the mean of both stages, (p_1 + p_2) / 2.

        The published map is made of (1 - p_normal + p_anomalous) / 2, which equals p_anomalous for a softmax.
        """
        found = compare_stages(frozen, params, text, features)
        patches = scale.scores(found.stages.mean(axis=0))[..., None]
        return Scores(found.image, patches, found.extras)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        """Returns the weighted sum of the terms of all modules in use.

        L = lam L_1 + lam_stage2 L_2 + the others, each with its weight, where L_i is focal + dice_abnormal +
        dice_normal of stage i.
        """
        text = encode_both(frozen, params, len(batch.labels))
        found = compare_stages(frozen, params, text, features)
        valid = batch.valid.astype(jnp.float32)
        total: Array = jnp.zeros(())
        terms: Terms = {}
        weights = config.lam, config.lam_stage2
        for number, (stage, weight) in enumerate(zip(found.stages, weights, strict=False), 1):
            local = losses.segmentation_terms(stage, batch)
            total += weight * sum(local.values())
            terms |= {f"{name}{number}": value for name, value in local.items()}
        logits = found.extras["image_logits"]
        cross_entropy = losses.image_cross_entropy(logits[:, None], batch)
        image_focal = _image_focal(found.image["combined"], batch)
        weighted = {
            "cross_entropy": (config.cross_entropy_weight, cross_entropy),
            "image_focal": (config.image_focal_weight, image_focal),
        }
        if config.compound:
            # Of the prompts without a prior, which are the same for all images.
            orthogonality = _orthogonality(text.anomalous[0])
            weighted["orthogonality"] = config.orthogonality_weight, orthogonality
        if config.prior:  # summed over the batch, as published
            squares = jnp.square(found.extras["prior"]).mean(axis=1)
            of_normal = (squares * valid * (batch.labels == 0)).sum()
            weighted["prior"] = config.prior_weight, of_normal
        total += sum(weight * term for weight, term in weighted.values())
        return total, terms | {name: term for name, (_, term) in weighted.items()}

    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 1.0),
        loss=loss,
        image_scores=IMAGE_SCORES,
        import_params=functools.partial(_import_params, config),
        aupro_thresholds="numpy",
        unused_parameters=learner.count_unused_projections(backbone, config),
        **vision_side(backbone, config),
    )


def _tokenize(backbone: Backbone, config: FAPromptConfig, num_normal: int) -> tuple[Tokens, Tokens]:
    """Returns the words of (normal, anomalous) after the learned tokens, of which normal has `num_normal`."""
    normal, anomalous = (
        prompts.tokenize(backbone, [text]) for text in (config.normal_text, config.abnormal_text)
    )
    # The end token of a text, whose output is the feature, must stay after the deep prompts.
    room = num_normal + normal[0].shape[1] - backbone.num_start_tokens - 1
    learner.check_deep_prompts(backbone, config, room=room)
    return normal, anomalous


def _prior(
    config: FAPromptConfig,
    network: Params,
    patches: Float[Array, "h w d"],
    anomaly: Float[Array, "h w"],
) -> Float[Array, " e"]:
    """Returns Omega, which one image adds to the tokens of the anomalous prompts."""
    patches = patches.reshape(-1, patches.shape[-1])
    count = min(config.num_selected, len(patches))
    # The published code computes the indices of the most anomalous patches and then does not use them.
    if config.dap_select == "topk":
        patches = patches[jax.lax.top_k(jax.lax.stop_gradient(anomaly.reshape(-1)), count)[1]]
    # An image with fewer patches leaves the network's last inputs at zero.
    selected = jnp.pad(normalize(patches[:count]), ((0, config.num_selected - count), (0, 0)))
    return layers.bottleneck(network, selected.reshape(-1))


def _import_params(config: FAPromptConfig, state: Arrays) -> Params:
    """Reads the learned arrays of the authors' state dict; arrays without effect are dropped."""
    state = learner.without_prefix(state, "prompt_learner")
    params: Params = learner.learner_from_torch(state)
    anomalous = params["abnormal"]
    params["abnormal"] = anomalous.reshape(-1, *anomalous.shape[-2:])
    if config.prior:
        names = {"first": "linear1", "second": "linear2"}
        params["prior"] = layers.linears_from_torch(state, "patch_meta_net.", **names)
    return params


def _orthogonality(anomalous: Float[Array, "k d"]) -> Float[Array, ""]:
    """Returns the sum over all pairs of anomalous prompts of |cosine|."""
    first, second = np.triu_indices(anomalous.shape[0], 1)
    unit = normalize(anomalous)
    return jnp.abs((unit[first] * unit[second]).sum(axis=-1)).sum()


def _image_focal(scores: Float[Array, " b"], batch: Batch) -> Float[Array, ""]:
    """Returns the mean of (1 - exp(-H))² H with H = softplus(score) - label score.

    It is a focal loss (gamma 2) that takes scores in [0, 1] for logits, as the published code does.
    """
    entropy = jax.nn.softplus(scores) - batch.labels * scores
    values = jnp.square(1 - jnp.exp(-entropy)) * entropy
    return losses.weighted_mean(values, batch.valid.astype(jnp.float32))
