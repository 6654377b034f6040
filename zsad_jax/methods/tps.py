"""TPS (Text Prompt Shunt, AAAI 2025): prompts for images, prompts for pixels, and a pathway between them.

The image score compares a global token with two learned "global" prompts. The map compares patches with
two "shunt" prompts, whose features a pathway of two attentions adapts to each image's patches, layer by
layer, and to the global prompts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.transformer import ACTIVATIONS
from zsad_jax.data.protocols import clean_class_name
from zsad_jax.methods.base import Batch, Loss, Method, Scores, grouped, score_fn, vision_side
from zsad_jax.methods.shared import layers, learner, losses, prompts, similarity
from zsad_jax.methods.shared.config import FOUR_LAYERS, TRAINING, Fields, Recipe, check_texts
from zsad_jax.methods.shared.learner import STATES
from zsad_jax.methods.shared.similarity import same_for_each, scale_of
from zsad_jax.utils.config import config_from, within
from zsad_jax.utils.errors import UserError

LEARNERS = {"global": "prompt_learner", "shunt": "class_learner"}  # ours: the authors' name

# Of the pathway: hidden width of its feed-forward part in joint widths, and its layers by the authors' names.
MLP_FACTOR = 4
NORMS = {"shunt": "ln_0", "global": "ln_1", "patches": "ln_4", "between": "ln_2", "mlp": "ln_3"}
INPUTS = ("query", "key", "value")  # of an attention
ATTENTIONS = {"to_patches": "text_attention", "to_global": "cross_attention"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TPSConfig(learner.LearnerConfig):
    """Options of TPS; the defaults are those of the authors' training.

    Attributes:
      learned: False: the hand-written prompts, and no pathway (the paper's ablation).
      pathway: the shunt features pass the pathway; False: they are compared as they are.
      shared_pathway: one pathway for all layers; False: one for each, as the paper writes.
      pathway_at_test: False: scores compare the raw shunt features, as the released test script does,
        though training goes through the pathway.
      tune_text_projection: train the text tower's projection into the joint space with the pathway, as in
        the authors' code; None: where the backbone has one.
      learned_texts: the words after the learned tokens: global normal and anomalous, shunt normal and
        anomalous.
      hand_written_texts: the same four of learned=False, as whole sentences; `{}` is the class name.
      segmentation: "per_layer": a softmax for each layer, whose maps are summed; "summed": one softmax
        over the cosines' sum over layers, as the paper writes.
      pathway_heads: of both attentions; divides the width of the joint space.
    """

    name: ClassVar[str] = "tps"
    title: ClassVar[str] = "TPS"
    recipe: ClassVar[Recipe] = Recipe(
        TRAINING | {"learning_rates": {"prompts": 1e-3, "pathway": 1e-4}}
    )
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma", "pathway_at_test", "hand_written_texts")
    vv_from: ClassVar[None] = None  # type: ignore[misc]

    learned: bool = True
    pathway: bool = True
    shared_pathway: bool = True
    pathway_at_test: bool = True
    tune_text_projection: bool | None = None
    learned_texts: tuple[str, ...] = (
        "object with all parts flawless.",
        "object with damaged parts.",
        "the flawless part.",
        "the damaged part.",
    )
    hand_written_texts: tuple[str, ...] = (
        "a photo of a normal {} with all parts flawless",
        "a photo of a anomalous {} with damaged parts",
        "a photo of the flawless part",
        "a photo of the damaged part",
    )
    feature_layers: tuple[int, ...] = FOUR_LAYERS
    segmentation: Literal["per_layer", "summed"] = "per_layer"
    pathway_heads: int = within(8, 1)
    cls_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("learned_texts", "hand_written_texts"):
            four = (
                "four texts: normal and anomalous of the image, normal and anomalous of the pixels"
            )
            self.require(key, len(getattr(self, key)) == len(LEARNERS) * len(STATES), four)
        check_texts(self, "hand_written_texts")


def tps(backbone: Backbone, config: TPSConfig | Fields | None = None) -> Method:
    """Returns TPS over a backbone with patch tokens in the joint space.

    Its params are {"global", "shunt": learner, "pathway": tree, "text_projection": [e, d]}, the last two only
    where the config and the backbone have them, and {} when nothing is learned. Given {}, it uses the
    hand-written prompts. With shared_pathway=False leaves of the pathway have a leading axis of layers. Its
    groups are "pathway", which includes the projection, and "prompts". Its prototypes [c, 4, d] are in the
    order of `learned_texts`. Its maps have one channel per layer, or one with segmentation="summed"; its
    extras are the fields of `similarity.Comparison` and "pathway_features", the raw texts of the pixels.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(TPSConfig, config)
    tunes_projection = _tunes_projection(backbone, config)
    if config.learned:
        learner.check_deep_prompts(backbone, config)
        if config.pathway:
            what = f"an embedding of {backbone.name}"
            layers.check_heads("pathway_heads", config.pathway_heads, backbone.embed_dim, what)
    scale = scale_of(backbone, config.temperature)
    num_pathways = 1 if config.shared_pathway else len(config.feature_layers)
    words = functools.cache(lambda: prompts.tokenize(backbone, config.learned_texts))
    adapt = functools.partial(_adapt, num_heads=config.pathway_heads)

    def init(key: Array, frozen: Params) -> Params:
        """Returns new params: tokens from N(0, init_std²), a new pathway, and a copy of the projection."""
        if not config.learned:
            return {}
        *learner_keys, pathway_key = jax.random.split(key, 3)
        named = zip(LEARNERS, learner_keys, strict=True)
        params: Params = {n: learner.init_learner(k, backbone, config) for n, k in named}
        new_pathway = functools.partial(_init_pathway, width=backbone.embed_dim)
        if config.pathway and config.shared_pathway:
            params["pathway"] = new_pathway(pathway_key)
        elif config.pathway:
            params["pathway"] = jax.vmap(new_pathway)(jax.random.split(pathway_key, num_pathways))
        if tunes_projection:
            # A copy, since a training step may donate its parameters' memory.
            projection = frozen["text"]["projection"]
            params["text_projection"] = jnp.array(projection, jnp.float32, copy=True)
        return params

    def encode(frozen: Params, params: Params) -> Float[Array, "4 d"]:
        """Returns the raw features of the four learned prompts."""
        if "text_projection" in params:
            text = {**frozen["text"], "projection": params["text_projection"]}
            frozen = {**frozen, "text": text}
        learners = [params[name] for name in LEARNERS]
        return learner.encode_learners(backbone, config, frozen, words(), learners)

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c 4 d"]:
        """Returns the raw learned features, the same for every class; or those of the hand-written prompts."""
        if params and config.learned:
            return same_for_each(encode(frozen, params), len(class_names))
        names = [clean_class_name(name) for name in class_names]
        texts = [[text.replace("{}", name)] for name in names for text in config.hand_written_texts]
        features = prompts.encode_ensembles(backbone, frozen, texts)
        return features.reshape(len(class_names), len(config.hand_written_texts), -1)

    def compare(
        params: Params, texts: Float[Array, "b 4 d"], features: VisionFeatures
    ) -> tuple[similarity.Comparison, Float[Array, "b l 2 d"]]:
        """Compares each image with its texts; the pixels' pass the pathway if `params` has one.

        The score is p_a(f; t_g), the map A (sum_l p_a(z_l; c_l)) Bᵀ, with c_l = pathway(t_s, t_g, z_l) for the
        global texts t_g, the shunt texts t_s and the patches z_l of layer l. The c_l are returned as well.
        """
        patches, of_image, shunt = features.patches, texts[:, :2], texts[:, 2:]
        if config.pathway and "pathway" in params:
            flat = patches.reshape(*patches.shape[:2], -1, patches.shape[-1])
            # Inside: the layers of an image, with one pathway or one each. Outside: the images.
            own = None if config.shared_pathway else 0
            of_layers = jax.vmap(adapt, in_axes=(own, None, None, 0))
            of_images = jax.vmap(of_layers, in_axes=(None, 0, 0, 0))
            of_pixels = of_images(params["pathway"], shunt, of_image, flat)
        else:
            of_pixels = jnp.stack([shunt] * patches.shape[1], axis=1)
        tokens = features.global_tokens[:, config.global_token]
        found = similarity.compare(tokens, patches, of_image, of_pixels, scale)
        if config.segmentation == "summed":
            pixels = scale.probabilities(found.patch_cosines.sum(axis=1, keepdims=True))
            found = found._replace(patch_probabilities=pixels, patch_scores=scale.scores(pixels))
        return found, of_pixels

    def compute(frozen: Params, params: Params, texts: Array, features: VisionFeatures) -> Scores:
        # The released test script calls the pathway, and then overwrites its result with the raw features.
        params = params if config.pathway_at_test else {}
        found, of_pixels = compare(params, texts, features)
        return similarity.pair_scores(found, pathway_features=of_pixels)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        """Returns focal + dice of each layer's unsmoothed map, summed, + cross-entropy of the image."""
        if not params:
            raise UserError("Nothing can be trained with learned=False. Set learned=True.")
        texts = same_for_each(encode(frozen, params), len(batch.labels))
        return losses.pair_loss(compare(params, texts, features)[0], batch)

    def import_params(state: Arrays) -> Params:
        """Reads the parameters of the authors' checkpoint that the config has.

        The one published pathway is used for every layer if the config has one for each.
        """
        read = functools.partial(learner.learner_from_torch, state)
        params: Params = {ours: read(f"{theirs}.") for ours, theirs in LEARNERS.items()}
        if config.pathway:
            pathway = _pathway_from_torch(state)
            if not config.shared_pathway:
                pathway = jax.tree.map(lambda x: np.stack([x] * num_pathways), pathway)
            params["pathway"] = pathway
        if tunes_projection:
            params["text_projection"] = np.asarray(state["former.text_projection"])
        return params

    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 1.0),
        loss=loss,
        groups=grouped(pathway="pathway", text_projection="pathway"),
        group_names=("prompts", "pathway"),
        works_untrained=True,
        import_params=import_params if config.learned else None,
        aupro_thresholds="numpy",
        unused_parameters=_count_unused(backbone, config, num_pathways) if config.learned else 0,
        **vision_side(backbone, config, num_maps=1 if config.segmentation == "summed" else None),
    )


def _tunes_projection(backbone: Backbone, config: TPSConfig) -> bool:
    """Returns whether the text tower's projection is trained, which `tune_text_projection` may demand."""
    possible = config.learned and "projection" in backbone.params["text"]
    if config.tune_text_projection and not possible:
        reason = f"the text tower of {backbone.name} has no projection"
        raise UserError(
            "Config key 'tune_text_projection' is True, but"
            f" {reason if config.learned else 'learned=False learns nothing'}. Use None or False."
        )
    return possible and config.tune_text_projection is not False


def _count_unused(backbone: Backbone, config: TPSConfig, num_pathways: int) -> int:
    """Returns the number of parameters in the authors' optimizer that have no effect."""
    width = backbone.embed_dim
    unused = len(LEARNERS) * learner.count_unused_projections(backbone, config)
    if config.pathway:
        # The image branch of the authors' pathway: an attention, a feed-forward part and a norm.
        hidden = MLP_FACTOR * width
        branch = 4 * (width + 1) * width + (width + 1) * hidden + (hidden + 1) * width + 2 * width
        unused += branch * num_pathways
    if _tunes_projection(backbone, config):
        # The vision tower's projection, which is applied before features are frozen.
        unused += backbone.vision_width * width
    return unused


def _adapt(
    pathway: Params,
    shunt: Float[Array, "2 d"],
    image: Float[Array, "2 d"],
    patches: Float[Array, "n d"],
    *,
    num_heads: int,
) -> Float[Array, "2 d"]:
    """Returns the raw shunt features after both attentions, to one layer's patches and the global texts.

    x = LN(s) + Attention(LN(s), LN(patches)); y = LN(x) + Attention(LN(x), LN(g), LN(x));
    the result is y + MLP(LN(y)).
    """
    norms, attentions = pathway["norms"], pathway["attentions"]
    scale = (shunt.shape[-1] / num_heads) ** -0.5
    x = _layer_norm(norms["shunt"], shunt)
    seen = _layer_norm(norms["patches"], patches.astype(jnp.float32))
    to_patches = functools.partial(layers.attend_folded, attentions["to_patches"])
    # As in the published code, both sums start from the norm of their input, not from the input itself. The
    # paper writes texts as the values here, whose number is not that of the keys.
    x = x + to_patches(x, seen, num_heads=num_heads, scale=scale)[0]

    x = _layer_norm(norms["between"], x)
    to_global = attentions["to_global"]  # its keys alone are of the global texts
    key = layers.linear(to_global["key"], _layer_norm(norms["global"], image))
    query, value = (layers.linear(to_global[name], x) for name in ("query", "value"))
    attended = _attend(query, key, value, num_heads=num_heads, scale=scale)
    x = x + layers.linear(to_global["out"], attended)

    hidden = _layer_norm(norms["mlp"], x)
    return x + layers.bottleneck(pathway["mlp"], hidden, activation=ACTIVATIONS["quick_gelu"])


def _layer_norm(params: layers.Linear, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Returns LayerNorm with {"scale", "bias"} and epsilon 1e-5."""
    # Of centered values: the difference of two moments would lose digits.
    # Epsilon is under the root, as in PyTorch.
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centered).mean(axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * params["scale"] + params["bias"]


def _attend(
    query: Float[Array, "*b n d"],
    key: Float[Array, "*b m d"],
    value: Float[Array, "*b m d"],
    *,
    num_heads: int,
    scale: float,
) -> Float[Array, "*b n d"]:
    """Returns multi-head softmax attention of projected inputs; heads are runs of d / num_heads numbers."""
    heads = [x.reshape(*x.shape[:-1], num_heads, -1) for x in (query, key, value)]
    highest = jax.lax.Precision.HIGHEST
    logits = jnp.einsum("...nhk,...mhk->...hnm", heads[0], heads[1], precision=highest)
    weights = jax.nn.softmax(scale * logits, axis=-1)
    mixed = jnp.einsum("...hnm,...mhk->...nhk", weights, heads[2], precision=highest)
    return mixed.reshape(query.shape)


def _init_pathway(key: Array, width: int) -> Params:
    """Returns {"norms", "attentions": layers by name, "mlp"}, initialized like PyTorch's modules."""
    *keys, mlp_key = jax.random.split(key, len(ATTENTIONS) + 1)
    norm = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    return {
        "norms": dict.fromkeys(NORMS, norm),
        "attentions": {
            name: _init_attention(one, width) for name, one in zip(ATTENTIONS, keys, strict=True)
        },
        "mlp": layers.init_bottleneck(mlp_key, width, MLP_FACTOR * width, width),
    }


def _init_attention(key: Array, width: int) -> dict[str, layers.Linear]:
    """Returns kernels in Glorot's range for the three inputs as one matrix, and zero biases."""
    bound = (
        6 / (4 * width)
    ) ** 0.5  # sqrt(6 / (inputs + outputs)) of the joint [3 width, width] matrix
    *keys, out_key = jax.random.split(key, 4)
    draw = functools.partial(jax.random.uniform, shape=(width,) * 2, minval=-bound, maxval=bound)
    kernels = [*map(draw, keys), layers.init_linear(out_key, width, width)["kernel"]]
    named = zip((*INPUTS, "out"), kernels, strict=True)
    return {name: {"kernel": kernel, "bias": jnp.zeros(width)} for name, kernel in named}


def _pathway_from_torch(state: Arrays) -> Params:
    """Reads the authors' pathway, without its image branch, which has no effect."""
    parts = {"scale": "weight", "bias": "bias"}
    return {
        "norms": {
            ours: {part: np.asarray(state[f"former.{theirs}.{parts[part]}"]) for part in parts}
            for ours, theirs in NORMS.items()
        },
        "attentions": {
            ours: _attention_from_torch(state, f"former.{theirs}")
            for ours, theirs in ATTENTIONS.items()
        },
        "mlp": layers.linears_from_torch(state, "former.text_feed.", first="0", second="2"),
    }


def _attention_from_torch(state: Arrays, name: str) -> dict[str, layers.Linear]:
    """Reads PyTorch's attention, which stores the three input layers as one."""
    kernels = np.split(np.asarray(state[f"{name}.in_proj_weight"]), 3)
    biases = np.split(np.asarray(state[f"{name}.in_proj_bias"]), 3)
    named = zip(INPUTS, kernels, biases, strict=True)
    inputs: dict[str, layers.Linear] = {
        part: {"kernel": kernel.T, "bias": bias} for part, kernel, bias in named
    }
    return inputs | {"out": layers.linear_from_torch(state, f"{name}.out_proj")}
