"""CoOp (IJCV 2022) and CoCoOp (CVPR 2022), as normal/abnormal detectors.

A learned context, shared by both states, stands in sentences about an image's own class; CoCoOp shifts the
context by what a small network makes of the image. The adaptation to anomaly detection is AnomalyCLIP's
(arXiv 2310.18961). That paper does not say how its CoCoOp makes maps that are far better than CoOp's; here
CoCoOp learns from the masks and compares value-value patches, which is our assumption.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods.base import Batch, Method, vision_side
from zsad_jax.methods.shared import losses
from zsad_jax.methods.shared.blocks import VISION_DEPTH
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.methods.shared.layers import (
    bottleneck,
    init_bottleneck,
    init_normal,
    linears_from_torch,
)
from zsad_jax.methods.shared.learner import without_prefix
from zsad_jax.methods.shared.pair_score import IMAGE_SCORES, pair_comparer, pair_scorer
from zsad_jax.methods.shared.prompts import check_length, clean_class_name, insert_tokens, tokenize
from zsad_jax.methods.shared.similarity import normalize
from zsad_jax.utils.config import config_from, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoOpConfig(MethodConfig):
    """Options of CoOp; the defaults are those of the papers that compare with it.

    Attributes:
      num_prompts: learned tokens, shared by both states.
      position: where they stand: before the class ("end" of the sentence is the class), half before and
        half after it, or after it.
      normal_word, abnormal_word: before the class name.
      local_loss: learn from the masks as well, with the losses of AnomalyCLIP.
    """

    num_prompts: int = within(12, 1)
    position: Literal["end", "middle", "front"] = "end"
    normal_word: str = "normal"
    abnormal_word: str = "anomalous"
    local_loss: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoCoOpConfig(CoOpConfig):
    """Options of CoCoOp: those of CoOp and of the network.

    Attributes:
      reduction: ratio of the joint width to the hidden width of the network.
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
      text: the unit-norm text features; None where images change them.
    """

    embeddings: Float[Array, "c 2 n e"]
    paddings: Int[Array, "c 2 n"]
    is_context: Float[Array, "c 2 n"]
    text: Float[Array, "c 2 d"] | None


def coop(backbone: Backbone, config: CoOpConfig | Mapping[str, Any] | None = None) -> Method:
    """Returns CoOp over a backbone with patch tokens in the joint space; params are {"context": [P, e]}.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    return _make("coop", backbone, config_from(CoOpConfig, config))


def cocoop(backbone: Backbone, config: CoCoOpConfig | Mapping[str, Any] | None = None) -> Method:
    """Returns CoCoOp; params are {"context", "network": two linear layers}; otherwise as `coop`."""
    return _make("cocoop", backbone, config_from(CoCoOpConfig, config))


def _make(name: str, backbone: Backbone, config: CoOpConfig) -> Method:
    conditional = isinstance(config, CoCoOpConfig)
    compare = pair_comparer(backbone, config)

    def init(key: Array, frozen: Params) -> Params:
        del frozen
        context_key, network_key = jax.random.split(key)
        shape = (config.num_prompts, backbone.text_width)
        params: Params = {"context": init_normal(context_key, shape, std=config.init_std)}
        if isinstance(config, CoCoOpConfig):
            width = backbone.embed_dim
            hidden = max(width // config.reduction, 1)
            params["network"] = init_bottleneck(network_key, width, hidden, backbone.text_width)
        return params

    def parts(names: Sequence[str]) -> list[tuple[slice, list[int]]]:
        """Returns parts of the context and the row of each sentence to insert them at, last part first."""
        start, count = [backbone.num_start_tokens] * len(names), config.num_prompts
        if config.position == "end":
            return [(slice(count), start)]
        _, paddings = tokenize(backbone, ["", *names])
        lengths = (paddings == 0).sum(axis=1)
        behind = [start[0] + int(length - lengths[0]) for length in lengths[1:]]
        half = count // 2 if config.position == "middle" else 0
        return [(slice(half, count), behind), *[(slice(half), start)] * (half > 0)]

    def prototypes(frozen: Params, params: Params, class_names: Sequence[str]) -> Prototypes:
        """Returns the sentences of the classes and, unless images change them, their features."""
        words = (config.normal_word, config.abnormal_word)
        names = [f"{word} {clean_class_name(name)}" for name in class_names for word in words]
        ids, paddings = tokenize(backbone, [f"{name}." for name in names])
        check_length(backbone, paddings, config.num_prompts)
        embeddings = backbone.embed_tokens(frozen, ids)
        mask = jnp.zeros((*embeddings.shape[:2], 1))
        for part, rows in parts(names):
            context = params["context"][part].astype(embeddings.dtype)
            context = jnp.broadcast_to(context, (len(names), *context.shape))
            mask, _ = insert_tokens(mask, paddings, jnp.ones_like(context[..., :1]), at=rows)
            embeddings, paddings = insert_tokens(embeddings, paddings, context, at=rows)

        def pairs(x: Array | np.ndarray) -> Array:
            return jnp.asarray(x).reshape(len(class_names), 2, *x.shape[1:])

        text = None
        if not conditional:
            text = pairs(normalize(backbone.encode_prompts(frozen, embeddings, paddings)))
        return Prototypes(pairs(embeddings), pairs(paddings), pairs(mask[..., 0]), text)

    def texts(
        frozen: Params,
        params: Params,
        prototypes: Prototypes,
        features: VisionFeatures,
        category: Int[Array, " b"],
    ) -> Float[Array, "b 2 d"]:
        """Returns the texts of each image's class; those of CoCoOp see the image's global token."""
        if prototypes.text is not None:
            return prototypes.text[category]

        def encode(token: Float[Array, " d"], own: Int[Array, ""]) -> Float[Array, "2 d"]:
            shift = bottleneck(params["network"], normalize(token))
            embeddings = prototypes.embeddings[own] + prototypes.is_context[own][..., None] * shift
            return backbone.encode_prompts(frozen, embeddings, prototypes.paddings[own])

        return normalize(jax.vmap(encode)(features.global_tokens[:, config.global_token], category))

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> losses.Loss:
        """Returns the image's cross-entropy, with `local_loss` plus the losses of each layer's map."""
        features = losses.zero_invalid(features, batch.valid)
        sentences = prototypes(frozen, params, batch.class_names)
        category = jnp.asarray(batch.category)
        found = compare(features, texts(frozen, params, sentences, features, category))
        logits = found["global_logits"][:, None]
        if config.local_loss:
            return losses.joint_loss(found["patch_probabilities"], logits, batch)
        image = losses.image_cross_entropy(logits, batch)
        return image, {"cross_entropy": image}

    def import_params(state: Mapping[str, np.ndarray]) -> Params:
        """Reads the context, and CoCoOp's network, of the authors' checkpoint."""
        state = without_prefix(state, "prompt_learner")
        params: Params = {"context": np.asarray(state["ctx"])}
        if conditional:
            params["network"] = linears_from_torch(
                state, "meta_net.", first="linear1", second="linear2"
            )
        return params

    return Method(
        name=name,
        config=config,
        init=init,
        prototypes=prototypes,
        score=pair_scorer(name, compare, texts),
        loss=loss,
        image_scores=IMAGE_SCORES,
        import_params=import_params,
        **vision_side(backbone, config),
    )
