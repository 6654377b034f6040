"""ViP2-CLIP (arXiv 2505.17692): prompts that look at the image, and one alignment for map and score.

A Meta-Net turns the image's global token into tokens of the prompts (VCA), a perception attention lets
the pair of text features look at the patches of each layer (FGP), and both the map and the image score
come from the patches' agreement with what results (UTPA).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.errors import UserError
from zsad_jax.methods import anomaly_map, losses
from zsad_jax.methods.base import Batch, Method, PyTree, Scores, check_extras, check_global_token
from zsad_jax.methods.blocks import check_blocks, scale_blocks
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.layers import (
    attend_folded,
    bottleneck,
    folded_weights,
    init_bottleneck,
    init_linear,
    init_normal,
    linear_from_torch,
)
from zsad_jax.methods.learner import STATES
from zsad_jax.methods.prompts import check_length, insert_tokens, tokenize, tokenize_adjectives
from zsad_jax.methods.similarity import cosines, normalize, temperature_of

# Of the perception attention, as the authors' files name its projections.
FGP = {"query": "q_proj_pre", "key": "k_proj_pre_1", "value": "v_proj_pre_1", "out": "proj_post_t"}
MODULES = re.compile(r"^(prompt_learner|Zero_try|ica|fgp)\.")  # in front of the authors' names


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViP2CLIPConfig:
    """The switches of ViP2-CLIP; the defaults made the published numbers, but for `adjective_bug`.

    A prompt is s_1..s_e, adjective, z_1..z_r: state tokens of its own, then class tokens that both
    prompts share.

    Attributes:
      adjectives: the normal and the abnormal one, each a single token of the backbone's vocabulary; the
        paper also tries normal/abnormal, perfect/flawed and flawless/imperfect.
      adjective_bug: both prompts have the abnormal adjective, as in the published code.
      state_length: e, learned tokens of each state.
      class_length: r, learned tokens that both states share.
      vca: the Meta-Net adds what it sees in the image to the class tokens.
      meta_hidden: hidden width of the Meta-Net's networks; None: half the width of the joint space.
      fgp: the perception attention takes the place of the text features, anew for each layer.
      fgp_heads: of the perception attention; divides the width of the joint space.
      utpa: the image score comes from the most anomalous patches; False: from the global token (the
        paper's dual-branch baseline).
      top_k: K, patches of each layer that the image score comes from; all where there are fewer.
      score: from the K patches to the image score: the probability of their mean cosines over all
        layers (the code), or the mean of each layer's probability (the paper).
      global_loss: one cross-entropy of the mean over the layers (the code), or the sum of each layer's
        (the paper).
      lam: weight of the losses of the maps.
      feature_layers: vision blocks, of a tower of 24, whose patches are used.
      cls_norm: the global token passes the vision tower's last norm.
      global_token: which one the Meta-Net, or the dual-branch image score, looks at.
      sigma: of the map's Gaussian, in pixels of the map; 0 does not smooth.
      temperature: divides the cosine; None is the backbone's own.
      init_std: of the learned vectors' initial normal distribution.
    """

    adjectives: tuple[str, ...] = ("good", "damaged")
    adjective_bug: bool = False
    state_length: int = within(7, 1)
    class_length: int = within(3, 1)
    vca: bool = True
    meta_hidden: int | None = within(None, 1)
    fgp: bool = True
    fgp_heads: int = within(8, 1)
    utpa: bool = True
    top_k: int = within(50, 1)
    score: Literal["pooled", "per_layer"] = "pooled"
    global_loss: Literal["pooled", "per_layer"] = "pooled"
    lam: float = within(1.0, 0)
    feature_layers: tuple[int, ...] = (6, 12, 18, 24)
    cls_norm: bool = False
    global_token: int = within(0, 0)
    sigma: float = within(8.0, 0)
    temperature: float | None = within(0.07, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.adjectives) != 2:
            raise UserError(
                f"Config key 'adjectives' is {self.adjectives!r}; it takes two words, the normal one first."
            )
        check_blocks("feature_layers", self.feature_layers)

    @property
    def score_name(self) -> str:
        """What the image score comes from."""
        return "patch" if self.utpa else "global"


class Alignment(NamedTuple):
    """How texts and patches agree.

    Attributes:
      layer_text_features: unit-norm (normal, abnormal) for each layer.
      patch_cosines: with the texts of the patches' layer.
      patch_probabilities: softmax of the cosines over the temperature.
      image_logits: over the temperature, the mean cosines of each layer's K most anomalous patches, or the
        global token's cosines alone.
    """

    layer_text_features: Float[Array, "b layers 2 d"]
    patch_cosines: Float[Array, "b layers h w 2"]
    patch_probabilities: Float[Array, "b layers h w 2"]
    image_logits: Float[Array, "b m 2"]


Words = tuple[Int[np.ndarray, "2 n"], Int[np.ndarray, "2 n"]]  # ids and paddings
EXTRAS = ("text_features", *Alignment._fields, "attention")


def vip2clip(
    backbone: Backbone, config: ViP2CLIPConfig | Mapping[str, Any] | None = None
) -> Method:
    """ViP2-CLIP over a backbone.

    Args:
      backbone: any with patch tokens in the joint space.
      config: the switches, or a mapping of them; None: the published setting.

    Returns:
      A method whose params are {"normal", "abnormal": [e, C], "class": [r, C]}, with VCA also {"meta_bias":
      [d], "meta_net": the r networks stacked}, and with FGP {"fgp": its four projections}, the latter in the
      group "fgp" and all else in "prompts". `score` takes `extras`, names out of `EXTRAS`; without FGP there
      is no "attention".

    Raises:
      UserError: for an unknown key, a bad value, or one that the backbone cannot serve.
    """
    config = config_from(ViP2CLIPConfig, config)
    check_global_token(backbone, config.global_token)
    if config.fgp and backbone.embed_dim % config.fgp_heads:
        raise UserError(
            f"Config key 'fgp_heads' is {config.fgp_heads}, which does not divide the {backbone.embed_dim}"
            f" numbers of an embedding of {backbone.name}; choose a divisor."
        )
    layers = scale_blocks(config.feature_layers, backbone.vision_depth)
    temperature = temperature_of(backbone, config.temperature)
    encode = functools.partial(_encode_pair, backbone, config, _word_source(backbone, config))
    align = functools.partial(_align, config, temperature)
    return Method(
        name="vip2clip",
        config=config,
        init=functools.partial(_init, backbone, config),
        features=lambda frozen, params, images: backbone.encode_image(
            frozen, images, layers=layers, cls_norm=config.cls_norm
        ),
        # Of the prompts before any image is seen; they name no class.
        prototypes=lambda frozen, params, names: jnp.stack([encode(frozen, params)] * len(names)),
        score=functools.partial(_score, config, encode, align),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_loss, config, encode, align),
        groups=_groups,
        group_names=("prompts", "fgp"),
        image_scores=(config.score_name,),
        features_key=(layers, None, config.cls_norm),
        import_params=functools.partial(_import_params, config),
        # The published attention has a temperature that it never uses.
        unused_parameters=int(config.fgp),
    )


def _import_params(config: ViP2CLIPConfig, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The learned parameters in the authors' checkpoint, as far as this config has them.

    Raises:
      KeyError: for an array that is missing.
    """
    state = {MODULES.sub("", name): np.asarray(value) for name, value in state.items()}
    params: dict[str, Any] = {
        "normal": state["ctx_pos"],
        "abnormal": state["ctx_neg"],
        "class": state["cls_ctx"],
    }
    if config.vca:
        networks = [
            {
                ours: linear_from_torch(state, f"cls_prompter.fc.{j}.{theirs}")
                for ours, theirs in (("first", 0), ("second", 2))
            }
            for j in range(len(params["class"]))
        ]
        params["meta_bias"] = state["cls_prompter.bias"].reshape(-1)
        params["meta_net"] = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
    if config.fgp:
        params["fgp"] = {ours: linear_from_torch(state, theirs) for ours, theirs in FGP.items()}
    return params


def _init(backbone: Backbone, config: ViP2CLIPConfig, key: Array, frozen: Params) -> dict[str, Any]:
    """Learned vectors from N(0, init_std²), linear layers as PyTorch begins them."""
    del frozen
    width, joint = backbone.text_width, backbone.embed_dim
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (config.state_length, width))
    shapes["class"] = (config.class_length, width)
    if config.vca:
        shapes["meta_bias"] = (joint,)
    *keys, meta, fgp = jax.random.split(key, len(shapes) + 2)
    params: dict[str, Any] = {
        name: init_normal(one, shape, std=config.init_std)
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    if config.vca:
        hidden = config.meta_hidden or max(joint // 2, 1)
        params["meta_net"] = jax.vmap(lambda one: init_bottleneck(one, joint, hidden, width))(
            jax.random.split(meta, config.class_length)
        )
    if config.fgp:
        params["fgp"] = {
            name: init_linear(one, joint, joint)
            for one, name in zip(jax.random.split(fgp, 4), FGP, strict=True)
        }
    return params


def _groups(params: Params) -> PyTree:
    """The perception attention ("fgp") has a learning rate of its own, beside all else ("prompts")."""
    return jax.tree.map_with_path(
        lambda path, _: "fgp" if path[0].key == "fgp" else "prompts", params
    )


def _word_source(backbone: Backbone, config: ViP2CLIPConfig) -> Callable[[], Words]:
    """The function () -> tokens of the adjectives; a backbone that can tokenise checks them at once."""
    words = functools.lru_cache(maxsize=1)(lambda: tokenize_adjectives(backbone, config.adjectives))
    try:
        tokenize(backbone, config.adjectives)
    except UserError:  # there is no tokenizer, which is told where text is needed
        return words
    words()
    return words


def _encode_pair(
    backbone: Backbone,
    config: ViP2CLIPConfig,
    words: Callable[[], Words],
    frozen: Params,
    params: Params,
    seen: Float[Array, "r e"] | float = 0.0,
) -> Float[Array, "2 d"]:
    """Unit-norm features of the two prompts; `seen` (a) is what the class tokens take from an image."""
    ids, paddings = words()
    if config.adjective_bug:
        ids, paddings = ids[[1, 1]], paddings[[1, 1]]
    check_length(backbone, paddings, config.state_length + config.class_length)
    states = jnp.stack([params[state] for state in STATES])
    classes = jnp.stack([params["class"] + seen] * len(STATES))
    start = backbone.num_start_tokens
    rows = backbone.embed_tokens(frozen, ids)
    rows, paddings = insert_tokens(rows, paddings, states, at=start)
    rows, paddings = insert_tokens(rows, paddings, classes, at=start + config.state_length + 1)
    return normalize(backbone.encode_prompts(frozen, rows, paddings))


def _condition(
    config: ViP2CLIPConfig,
    encode: Callable[..., Float[Array, "2 d"]],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
) -> Float[Array, "b 2 d"]:
    """The pair of text features T for each image, after VCA's look at its global token."""
    tokens = features.global_tokens[:, config.global_token]
    if not config.vca:
        pair = encode(frozen, params)
        return jnp.broadcast_to(pair, (tokens.shape[0], *pair.shape))

    def look(token: Float[Array, " d"]) -> Float[Array, "2 d"]:
        seen = jax.vmap(bottleneck, in_axes=(0, None))(
            params["meta_net"], normalize(token) + params["meta_bias"]
        )
        return encode(frozen, params, seen)

    return jax.vmap(look)(tokens)


def _perceive(
    apply: Callable[..., Array],
    config: ViP2CLIPConfig,
    params: Params,
    text: Float[Array, "b 2 d"],
    features: VisionFeatures,
) -> Float[Array, "b layers *n"]:
    """The perception attention of each image's pair of texts to the unit-norm patches of each layer.

    Like the published code, it does not divide the logits by the root of the heads' width.

    Args:
      apply: `attend_folded`, or `folded_weights` for the attention itself [b, layers, heads, 2, patches].
      config, params, text, features: as in `_align`.
    """
    unit = normalize(features.patches)
    unit = unit.reshape(*unit.shape[:2], -1, unit.shape[-1])
    attend = functools.partial(apply, params["fgp"], num_heads=config.fgp_heads, scale=1.0)
    return jax.vmap(jax.vmap(attend, in_axes=(None, 0)))(text, unit)


def _align(
    config: ViP2CLIPConfig,
    temperature: float,
    params: Params,
    text: Float[Array, "b 2 d"],
    features: VisionFeatures,
) -> Alignment:
    """Compares the patches of each layer with the texts, and gathers what speaks for the image."""
    b, layers, h, w, _ = features.patches.shape
    if config.fgp:
        texts = normalize(_perceive(attend_folded, config, params, text, features))
    else:
        texts = jnp.broadcast_to(text[:, None], (b, layers, *text.shape[1:]))
    # The normalisation of `_perceive`, on the same array: the compiler does both at once.
    values = jax.vmap(cosines)(features.patches, texts)
    probabilities = jax.nn.softmax(values / temperature, axis=-1)
    if config.utpa:
        flat = probabilities[..., 1].reshape(b, layers, h * w)
        _, strongest = jax.lax.top_k(flat, min(config.top_k, h * w))
        rows = values.reshape(b, layers, h * w, 2)
        image = jnp.take_along_axis(rows, strongest[..., None], axis=2).mean(axis=2)
    else:
        image = cosines(features.global_tokens[:, config.global_token, None], text)
    return Alignment(texts, values, probabilities, image / temperature)


def _score(
    config: ViP2CLIPConfig,
    encode: Callable[..., Float[Array, "2 d"]],
    align: Callable[..., Alignment],
    frozen: Params,
    params: Params,
    prototypes: Float[Array, "c 2 d"],
    features: VisionFeatures,
    category: Int[Array, " b"],
    *,
    extras: Collection[str] = (),
) -> Scores:
    """The image score, and each layer's share [b, h, w, layers] of the mean of their maps.

    A layer's published map, (1 - p_normal + p_abnormal) / 2 up-sampled, is that of p_abnormal alone,
    since the two add up to 1.
    """
    check_extras("vip2clip", extras, EXTRAS if config.fgp else EXTRAS[:-1])
    text = prototypes[category]
    if config.vca:
        text = _condition(config, encode, frozen, params, features)
    found = align(params, text, features)
    logits = found.image_logits
    if config.score == "pooled":
        logits = logits.mean(axis=1, keepdims=True)
    patches = jnp.moveaxis(found.patch_probabilities[..., 1], 1, -1)
    computed = {"text_features": text, **found._asdict()}
    if "attention" in extras:
        computed["attention"] = _perceive(folded_weights, config, params, text, features)
    return Scores(
        image={config.score_name: jax.nn.softmax(logits)[..., 1].mean(axis=1)},
        patches=patches / patches.shape[-1],
        extras={name: computed[name] for name in extras},
    )


def _loss(
    config: ViP2CLIPConfig,
    encode: Callable[..., Float[Array, "2 d"]],
    align: Callable[..., Alignment],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Focal and dice losses of each layer's unsmoothed map, and the image's cross-entropy."""
    features = losses.zero_invalid(features, batch.valid)
    found = align(params, _condition(config, encode, frozen, params, features), features)
    terms = losses.layer_terms(found.patch_probabilities, batch)
    local: Array = sum(terms.values(), jnp.zeros(()))

    logits = found.image_logits
    if config.global_loss == "pooled":
        logits = logits.mean(axis=1, keepdims=True)
    entropy = jax.vmap(losses.cross_entropy, in_axes=(1, None, None))
    terms["cross_entropy"] = entropy(logits, batch.labels, batch.valid.astype(jnp.float32)).sum()
    return terms["cross_entropy"] + config.lam * local, terms
