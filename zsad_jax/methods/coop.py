"""CoOp (IJCV 2022) and CoCoOp (CVPR 2022), as anomaly detectors.

A learned context, shared by both states, is inserted into sentences about an image's own class; CoCoOp adds
to the context what a small network computes from the image. The adaptation to anomaly detection is
AnomalyCLIP's (arXiv 2310.18961). That paper does not say how its CoCoOp makes maps that are far better than
CoOp's; here CoCoOp learns from the masks and compares value-value patches, which is our assumption.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.data.protocols import clean_class_name
from zsad_jax.methods.base import Batch, Loss, Method, Scores, score_fn, vision_side
from zsad_jax.methods.shared import layers, losses, prompts, similarity
from zsad_jax.methods.shared.config import VISION_DEPTH, Fields, MethodConfig, check_texts
from zsad_jax.methods.shared.learner import without_prefix
from zsad_jax.methods.shared.similarity import normalize
from zsad_jax.utils.config import config_from, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoOpConfig(MethodConfig):
    """Options of CoOp; the defaults are those of the papers that compare with it.

    Attributes:
      num_prompts: learned tokens, shared by both states.
      position: where they are inserted: before the class ("end" of the sentence is the class), half before
        and half after it, or after it.
      normal_text, abnormal_text: the two states; `{}` is the class name.
      lam: weight of the segmentation losses, which are AnomalyCLIP's; 0: the masks are not used.
    """

    name: ClassVar[str] = "coop"
    title: ClassVar[str] = "CoOp"
    renamed: ClassVar[Mapping[str, str]] = {
        "normal_word": "normal_text ('normal {}' for 'normal')",
        "abnormal_word": "abnormal_text ('anomalous {}' for 'anomalous')",
        "local_loss": "lam (1.0 for True, 0.0 for False)",
    }
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma",)

    num_prompts: int = within(12, 1)
    position: Literal["end", "middle", "front"] = "end"
    normal_text: str = "normal {}"
    abnormal_text: str = "anomalous {}"
    lam: float = within(0.0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_texts(self, "normal_text", "abnormal_text", place="{}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoCoOpConfig(CoOpConfig):
    """Options of CoCoOp: those of CoOp and of the network.

    Attributes:
      reduction: ratio of the joint width to the hidden width of the network.
    """

    name: ClassVar[str] = "cocoop"
    title: ClassVar[str] = "CoCoOp"
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma",)

    lam: float = within(1.0, 0)
    vv_from: int | None = within(6, 1, VISION_DEPTH)
    reduction: int = within(16, 1)


class Prototypes(NamedTuple):
    """The sentences (normal, anomalous) of each class, with the context inserted.

    Paddings are 1 = pad, `is_context` is 1 where a token is learned. `text` are the unit-norm text features;
    None where images change them.
    """

    embeddings: Float[Array, "c 2 n e"]
    paddings: Int[Array, "c 2 n"]
    is_context: Float[Array, "c 2 n"]
    text: Float[Array, "c 2 d"] | None


def coop(backbone: Backbone, config: CoOpConfig | Fields | None = None) -> Method:
    """Returns CoOp or, given its config, CoCoOp over a backbone with patch tokens in the joint space.

    Its prompts are [v_1] ... [v_P] "<state> <class>.", with v learned and the same for both states. CoCoOp has
    v_i + pi(f) in place of v_i, with pi(f) = relu(f W_1 + b_1) W_2 + b_2 of the unit-norm global token f.
    Scores are those of `similarity.pair_scores`.

    Its params are {"context": [P, e]}, in CoCoOp also {"network": two linear layers}.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(CoOpConfig, config)
    conditional = isinstance(config, CoCoOpConfig)
    compare = similarity.pair_comparer(backbone, config)

    def init(key: Array, frozen: Params) -> Params:
        context_key, network_key = jax.random.split(key)
        shape = (config.num_prompts, backbone.text_width)
        params: Params = {"context": config.init_std * jax.random.normal(context_key, shape)}
        if isinstance(config, CoCoOpConfig):
            joint = backbone.embed_dim
            widths = joint, max(joint // config.reduction, 1), backbone.text_width
            params["network"] = layers.init_bottleneck(network_key, *widths)
        return params

    def parts(names: Sequence[str]) -> list[tuple[slice, list[int]]]:
        """Returns parts of the context and the row of each sentence to insert them at, last part first."""
        start, count = [backbone.num_start_tokens] * len(names), config.num_prompts
        if config.position == "end":
            return [(slice(count), start)]
        _, paddings = prompts.tokenize(backbone, ["", *names])
        # Row 0, the empty text, has at most a start and an end token: the others exceed it by their words.
        lengths = (paddings == 0).sum(axis=1)
        after = [start[0] + int(length - lengths[0]) for length in lengths[1:]]
        half = count // 2 if config.position == "middle" else 0
        # An insertion does not move the places before it.
        both = [(slice(half, count), after), (slice(half), start)]
        return both if half else both[:1]

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Prototypes:
        """Returns the sentences of the classes and, unless images change them, their features."""
        states = (config.normal_text, config.abnormal_text)
        classes = [clean_class_name(name) for name in class_names]
        names = [state.replace("{}", name) for name in classes for state in states]
        ids, paddings = prompts.tokenize(backbone, [f"{name}." for name in names])
        prompts.check_length(backbone, paddings, config.num_prompts)
        embeddings = backbone.embed_tokens(frozen, ids)
        mask = jnp.zeros((*embeddings.shape[:2], 1))
        for part, rows in parts(names):
            context = params["context"][part].astype(embeddings.dtype)
            context = jnp.broadcast_to(context, (len(names), *context.shape))
            ones = jnp.ones_like(context[..., :1])
            mask, _ = prompts.insert_tokens(mask, paddings, ones, at=rows)
            embeddings, paddings = prompts.insert_tokens(embeddings, paddings, context, at=rows)

        def pairs(x: Array | np.ndarray) -> Array:
            return jnp.asarray(x).reshape(len(class_names), 2, *x.shape[1:])

        text = None
        if not conditional:
            text = pairs(normalize(backbone.encode_prompts(frozen, embeddings, paddings)))
        return Prototypes(pairs(embeddings), pairs(paddings), pairs(mask[..., 0]), text)

    def condition(
        frozen: Params, params: Params, own: Prototypes, features: VisionFeatures
    ) -> Float[Array, "b 2 d"]:
        """Returns the unit-norm texts of each image, which see its global token in CoCoOp."""
        if own.text is not None:
            return own.text

        def encode(token: Float[Array, " d"], pair: Prototypes) -> Float[Array, "2 d"]:
            # One network output shifts all learned tokens of both sentences, and no word.
            shift = layers.bottleneck(params["network"], normalize(token))
            embeddings = pair.embeddings + pair.is_context[..., None] * shift
            return backbone.encode_prompts(frozen, embeddings, pair.paddings)

        text = jax.vmap(encode)(features.global_tokens[:, config.global_token], own)
        return normalize(text)

    def compute(
        frozen: Params, params: Params, own: Prototypes, features: VisionFeatures
    ) -> Scores:
        text = condition(frozen, params, own, features)
        return similarity.pair_scores(compare(text, features), text_features=text)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        sentences = prototypes(frozen, params, batch.class_names)
        own = jax.tree.map(lambda x: x[jnp.asarray(batch.category)], sentences)
        text = condition(frozen, params, own, features)
        return losses.pair_loss(compare(text, features), batch, lam=config.lam)

    def import_params(state: Arrays) -> Params:
        state = without_prefix(state, "prompt_learner")
        params: Params = {"context": np.asarray(state["ctx"])}
        if conditional:
            names = {"first": "linear1", "second": "linear2"}
            params["network"] = layers.linears_from_torch(state, "meta_net.", **names)
        return params

    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 1.0),
        loss=loss,
        import_params=import_params,
        **vision_side(backbone, config),
    )
