"""ViP2-CLIP (arXiv 2505.17692): prompts that look at the image, and one alignment for map and score.

A Meta-Net turns the image's global token into tokens of the prompts (VCA), a perception attention lets
the pair of text features look at the patches of each layer (FGP), and both the map and the image score
come from the patches' agreement with what results (UTPA).
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
from zsad_jax.methods.base import Batch, Loss, Method, Scores, grouped, score_fn, vision_side
from zsad_jax.methods.shared import layers, losses, prompts
from zsad_jax.methods.shared.config import (
    FOUR_LAYERS,
    MAX_SIGMA,
    TRAINING,
    Fields,
    MethodConfig,
    Recipe,
)
from zsad_jax.methods.shared.learner import STATES, without_prefix
from zsad_jax.methods.shared.similarity import cosines, normalize, same_for_each, scale_of
from zsad_jax.utils.config import config_from, within
from zsad_jax.utils.errors import UserError

# Modules of the learned arrays, by the authors' names.
MODULES = ("prompt_learner", "Zero_try", "ica", "fgp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViP2CLIPConfig(MethodConfig):
    """Options of ViP2-CLIP; the defaults are those of the published numbers, except for `adjective_bug`.

    A prompt is s_1..s_e, adjective, z_1..z_r: state tokens of its own, and class tokens that both share.

    Attributes:
      adjectives: the normal and the anomalous one, each a single token of the backbone's vocabulary; the
        paper also tries normal/abnormal, perfect/flawed and flawless/imperfect.
      adjective_bug: both prompts have the anomalous adjective, as in the published code.
      num_prompts: e, learned tokens of each state.
      num_class_prompts: r, learned tokens that both states share.
      vca: the Meta-Net adds to the class tokens what it computes from the image.
      meta_hidden: hidden width of the Meta-Net's networks; None: half the width of the joint space.
      fgp: the output of the perception attention replaces the text features, separately for each layer.
      fgp_heads: of the perception attention; divides the width of the joint space.
      utpa: the image score comes from the most anomalous patches; False: from the global token (the
        paper's dual-branch baseline).
      top_k: K, patches of each layer that the image score comes from; all where there are fewer.
      score_pooling: from the K patches to the image score: the probability of their mean cosines over all
        layers (the code), or the mean of each layer's probability (the paper).
      global_loss: one cross-entropy of the mean over the layers (the code), or the sum of each layer's
        (the paper).
      lam: weight of the segmentation losses.
      global_token: index of the one that the Meta-Net, or the dual-branch image score, uses.
    """

    name: ClassVar[str] = "vip2clip"
    title: ClassVar[str] = "ViP²-CLIP"
    recipe: ClassVar[Recipe] = Recipe(
        TRAINING | {"epochs": 10, "b1": 0.9, "learning_rates": {"prompts": 1e-3, "fgp": 1e-5}}
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "state_length": "num_prompts",
        "class_length": "num_class_prompts",
        "score": "score_pooling",
    }
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma", "score_pooling")
    vv_from: ClassVar[None] = None  # type: ignore[misc]

    adjectives: tuple[str, ...] = ("good", "damaged")
    adjective_bug: bool = False
    num_prompts: int = within(7, 1)
    num_class_prompts: int = within(3, 1)
    vca: bool = True
    meta_hidden: int | None = within(None, 1)
    fgp: bool = True
    fgp_heads: int = within(8, 1)
    utpa: bool = True
    top_k: int = within(50, 1)
    score_pooling: Literal["pooled", "per_layer"] = "pooled"
    global_loss: Literal["pooled", "per_layer"] = "pooled"
    lam: float = within(1.0, 0)
    feature_layers: tuple[int, ...] = FOUR_LAYERS
    cls_norm: bool = False
    sigma: float = within(8.0, 0, MAX_SIGMA)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("adjectives", len(self.adjectives) == 2, "two words, the normal one first")


class Alignment(NamedTuple):
    """Agreement of texts and patches.

    `image_logits` are, over the temperature, the mean cosines of each layer's K most anomalous patches, or the
    cosines of the global token. `layer_text_features` have unit norm.
    """

    layer_text_features: Float[Array, "b layers 2 d"]
    patch_cosines: Float[Array, "b layers h w 2"]
    patch_probabilities: Float[Array, "b layers h w 2"]
    image_logits: Float[Array, "b m 2"]
    attention: Float[Array, "b layers heads 2 n"] | None  # of FGP


def vip2clip(backbone: Backbone, config: ViP2CLIPConfig | Fields | None = None) -> Method:
    """Returns ViP2-CLIP over a backbone with patch tokens in the joint space.

    Its params are {"normal", "abnormal": [e, C], "class": [r, C]}, with VCA also {"meta_bias": [d],
    "meta_net": the r networks stacked}, and with FGP {"fgp": its four projections}, the latter in the group
    "fgp" and all others in "prompts". Its extras are "text_features" and the fields of `Alignment`, "attention"
    only with FGP.

    Raises:
      UserError: for an unknown key, a bad value, or one that the backbone does not support.
    """
    config = config_from(ViP2CLIPConfig, config)
    if config.fgp:
        what = f"an embedding of {backbone.name}"
        layers.check_heads("fgp_heads", config.fgp_heads, backbone.embed_dim, what)
    scale = scale_of(backbone, config.temperature)
    score_name = "patch" if config.utpa else "global"  # what the image score comes from

    words = functools.cache(lambda: prompts.tokenize(backbone, (*config.adjectives, "")))
    try:
        tokens = words()
    except UserError:
        pass  # without a tokenizer, the error is raised where text is needed
    else:
        _check_adjectives(backbone, config.adjectives, tokens)

    def init(key: Array, frozen: Params) -> Params:
        """Returns new params: tokens and bias from N(0, init_std²), and layers in PyTorch's default ranges."""
        width, joint = backbone.text_width, backbone.embed_dim
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (config.num_prompts, width))
        shapes["class"] = (config.num_class_prompts, width)
        if config.vca:
            shapes["meta_bias"] = (joint,)
        *keys, meta, fgp = jax.random.split(key, len(shapes) + 2)
        params: Params = layers.init_tokens(keys, shapes, std=config.init_std)
        if config.vca:
            widths = joint, config.meta_hidden or max(joint // 2, 1), width
            own_keys = jax.random.split(meta, config.num_class_prompts)
            params["meta_net"] = jax.vmap(lambda k: layers.init_bottleneck(k, *widths))(own_keys)
        if config.fgp:
            params["fgp"] = layers.init_perception(fgp, joint, joint)
        return params

    def encode(
        frozen: Params, params: Params, seen: Float[Array, "r e"] | float = 0.0
    ) -> Float[Array, "2 d"]:
        """Returns unit-norm features of the two prompts; the class tokens take `seen` (a) from an image."""
        # The published code cuts the tokens of both prompts out of the anomalous sentence.
        order = [1, 1] if config.adjective_bug else [0, 1]
        ids, paddings = (array[order] for array in words())
        prompts.check_length(backbone, paddings, config.num_prompts + config.num_class_prompts)
        states = jnp.stack([params[state] for state in STATES])
        classes = jnp.stack([params["class"] + seen] * len(STATES))
        start = backbone.num_start_tokens
        rows = backbone.embed_tokens(frozen, ids)
        rows, paddings = prompts.insert_tokens(rows, paddings, states, at=start)
        after = start + config.num_prompts + 1  # after the adjective
        rows, paddings = prompts.insert_tokens(rows, paddings, classes, at=after)
        return normalize(backbone.encode_prompts(frozen, rows, paddings))

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c 2 d"]:
        """Returns the pair before any image is seen; the prompts name no class."""
        return same_for_each(encode(frozen, params), len(class_names))

    def condition(frozen: Params, params: Params, tokens: Array) -> Float[Array, "b 2 d"]:
        """Returns the text features (normal, anomalous) of each image, which VCA conditions on its token."""
        if not config.vca:
            return same_for_each(encode(frozen, params), len(tokens))
        networks = jax.vmap(layers.bottleneck, in_axes=(0, None))

        def encode_one(token: Float[Array, " d"]) -> Float[Array, "2 d"]:
            seen = networks(params["meta_net"], normalize(token) + params["meta_bias"])
            return encode(frozen, params, seen)

        return jax.vmap(encode_one)(tokens)

    def align(params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures) -> Alignment:
        """Compares the patches of each layer with the texts, and selects those of the image score.

        By default the score is softmax(m / tau)[a], with m the mean of [cos(z, T_l,n), cos(z, T_l,a)] over the
        layers l and their K most anomalous patches z, and the map is A (mean_l p_a(z_l)) Bᵀ, where T_l is the
        output of FGP for layer l.
        """
        attention = None
        if config.fgp:
            perceive = functools.partial(layers.perceive, num_heads=config.fgp_heads)
            texts, attention = perceive(params["fgp"], text, features.patches)
            texts = normalize(texts)
        else:
            layer_shape = (*features.patches.shape[:2], *text.shape[1:])
            texts = jnp.broadcast_to(text[:, None], layer_shape)
        # The compiler merges this normalization of the patches with that of `layers.perceive`.
        values = cosines(features.patches, texts)
        probabilities = scale.probabilities(values)
        if config.utpa:
            image = _pool_strongest(values, probabilities, config.top_k)
        else:
            image = cosines(features.global_tokens[:, config.global_token, None], text)
        return Alignment(texts, values, probabilities, image / scale.temperature, attention)

    def compute(
        frozen: Params, params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> Scores:
        """Returns the image score, and each layer's share [b, h, w, layers] of the mean of their maps.

        A layer's map is that of (1 - p_normal + p_anomalous) / 2, which equals p_anomalous for a softmax.
        """
        if config.vca:
            text = condition(frozen, params, features.global_tokens[:, config.global_token])
        found = align(params, text, features)
        logits = _pool(found.image_logits, config.score_pooling)
        patches = jnp.moveaxis(scale.scores(found.patch_probabilities), 1, -1)
        extras = {"text_features": text, **found._asdict()}
        if not config.fgp:
            del extras["attention"]
        image = {score_name: jax.nn.softmax(logits)[..., 1].mean(axis=1)}
        return Scores(image, patches / patches.shape[-1], extras)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        text = condition(frozen, params, features.global_tokens[:, config.global_token])
        found = align(params, text, features)
        logits = _pool(found.image_logits, config.global_loss)
        return losses.joint_loss(found.patch_probabilities, logits, batch, lam=config.lam)

    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 1.0),
        loss=loss,
        groups=grouped(fgp="fgp"),
        group_names=("prompts", "fgp"),
        image_scores=(score_name,),
        import_params=functools.partial(_import_params, config),
        # The published attention has a temperature that it never uses.
        unused_parameters=int(config.fgp),
        **vision_side(backbone, config, num_maps=1),
    )


def _check_adjectives(backbone: Backbone, adjectives: Sequence[str], tokens: Tokens) -> None:
    """Raises UserError if an adjective is not a single token."""
    _, paddings = tokens
    # The last text is empty: it has at most a start and an end token.
    *counts, ends = (paddings == 0).sum(axis=1)
    for adjective, count in zip(adjectives, counts, strict=True):
        if count - ends != 1:
            raise UserError(
                f"The adjective {adjective!r} is {count - ends} tokens for {backbone.name}. Expected one token."
                " Choose other words, for example --config.method.adjectives=\"('normal', 'abnormal')\", or"
                " from Python adjectives=('normal', 'abnormal')."
            )


def _pool_strongest(
    values: Float[Array, "b layers h w 2"],
    probabilities: Float[Array, "b layers h w 2"],
    count: int,
) -> Float[Array, "b layers 2"]:
    """Returns the mean values of each layer's `count` most anomalous patches; of all where there are fewer."""
    b, depth, h, w, _ = values.shape
    flat = probabilities[..., 1].reshape(b, depth, h * w)
    _, strongest = jax.lax.top_k(flat, min(count, h * w))
    # Probabilities select; what is averaged are cosines, which the softmax of the image score then compares.
    rows = values.reshape(b, depth, h * w, 2)
    return jnp.take_along_axis(rows, strongest[..., None], axis=2).mean(axis=2)


def _pool(logits: Float[Array, "b m 2"], how: str) -> Float[Array, "b m 2"]:
    return logits.mean(axis=1, keepdims=True) if how == "pooled" else logits


def _import_params(config: ViP2CLIPConfig, state: Arrays) -> Params:
    """Reads the parameters of the authors' checkpoint that the config has."""
    state = without_prefix(state, *MODULES)
    names = {"normal": "ctx_pos", "abnormal": "ctx_neg", "class": "cls_ctx"}
    params: Params = {ours: state[theirs] for ours, theirs in names.items()}
    if config.vca:
        networks = [
            layers.linears_from_torch(state, f"cls_prompter.fc.{j}.", first="0", second="2")
            for j in range(len(params["class"]))
        ]
        params["meta_bias"] = state["cls_prompter.bias"].reshape(-1)
        params["meta_net"] = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
    if config.fgp:
        params["fgp"] = layers.linears_from_torch(state, **layers.PERCEPTION)
    return params
