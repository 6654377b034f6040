"""The nano backbones of the pre-training: its sizes, its batches' form, and its losses.

The losses are softmaxes over cosine / temperature against sentence embeddings that are pooled as those of
the fixed prompts are:

  image   each global token against (class, state) of all classes in the batch; the states are normal
          and either group of defects
  state   each global token against normal and anomalous of one name: its own, or another's
  patch   each patch token against the same pair, by whether a defect touches the patch
  top     the same for an image's highest patch, which methods add to the image score
  dense   each patch token against (class, state) of all classes
  text    each sentence against another of the same name and state
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import nano_drawings
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from nano_towers import FAMILIES, GRID, PATCH, Clip, Params, Sizes, Tips

GROUPS = ("normal", nano_drawings.STRUCTURE, nano_drawings.SURFACE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the model, and settings of the training."""

    family: str = "tips"
    width: int = 128
    depth: int = 4
    text_depth: int = 2
    num_heads: int = 4
    mlp_dim: int = 512
    vocabulary: int = 2048
    temperature: float = 0.1  # fixed; a small learned value leaves learned prompts no room
    classes: int = 8  # per batch
    images_per_class: int = 4  # for small images; a batch of large images has as many patches
    other_names: int = 2  # names to align with besides the classes: "object" and an unrelated one
    sentences: int = 2  # per name and group
    own_share: float = 0.6  # share of images aligned with sentences about their own class
    learning_rate: float = 1e-3
    embedding_rate: float = 0.2  # relative to the learning rate: the filters start well
    weight_decay: float = 0.05
    warmup: int = 200
    ema: float = 0.999
    large_every: tuple[int, int] = (4, 2)  # one batch in n, first two thirds and last third
    anomalous_share: float = 0.4  # of the patches' weight; far from 0.5, the class prior dominates
    image_loss: float = 0.5
    state_loss: float = 1.0
    patch_loss: float = 2.0
    top_loss: float = 0.3
    dense_loss: float = 0.2
    text_loss: float = 0.5

    @property
    def towers(self) -> Tips | Clip:
        """Returns the family's towers at the sizes of this config."""
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sizes)}
        return FAMILIES[self.family](Sizes(**sizes))


class Batch(NamedTuple):
    """The inputs of one step: K names, of which the first M are the classes of the images.

    Attributes:
      images: 8-bit RGB.
      touched: the defective share of each patch.
      category: index of the image's class among the names.
      group: index into GROUPS.
      aligned: index of the name whose normal and anomalous sentences the image is compared with.
      ids, paddings, prompts: the sentences of each name, S per group; `prompts` marks empty positions.
      offset: position of the image's window in the position grid.
    """

    images: np.ndarray  # [b, s, s, 3]
    touched: np.ndarray  # [b, h, w]
    category: np.ndarray  # [b]
    group: np.ndarray  # [b]
    aligned: np.ndarray  # [b]
    ids: np.ndarray  # [k, 3 * sentences, n]
    paddings: np.ndarray
    prompts: np.ndarray
    offset: np.ndarray  # [2]


def cosine_filters(count: int, chroma: int) -> Float[np.ndarray, "14 14 3 d"]:
    """Returns the lowest 2D cosines of a patch, for luminance and (`chroma` each) two color contrasts.

    They describe patches well from the start; with random filters, learning this takes a third of the
    training.
    """
    place = np.pi * (np.arange(PATCH) + 0.5) / PATCH
    waves = np.cos(place[:, None] * np.arange(PATCH))
    waves /= np.linalg.norm(waves, axis=0)
    order = sorted(
        ((i, j) for i in range(PATCH) for j in range(PATCH)), key=lambda ij: (sum(ij), ij)
    )
    axes = np.array([[1, 1, 1], [1, -1, 0], [0.5, 0.5, -1]]) / np.sqrt([[3], [2], [1.5]])
    chosen = [(ij, axes[0]) for ij in order[: count - 2 * chroma]]
    chosen += [(ij, axis) for axis in axes[1:] for ij in order[:chroma]]
    # Natural spectra fall with frequency; the gain equalizes the coefficients.
    filters = [
        (1 + i + j) * np.multiply.outer(np.outer(waves[:, i], waves[:, j]), axis)
        for (i, j), axis in chosen
    ]
    return 0.4 * np.stack(filters, -1).astype(np.float32)


def contrast_attention(config: Config, key: Array) -> Params:
    """Returns attention weights that initially subtract from each token part of the mean of similar tokens.

    Queries equal keys, and the output reverses the value projection with the opposite sign. A patch's
    deviation from the rest of its image is then in its token from the first step on.
    """
    key_match, key_mix = jax.random.split(key)
    width, heads = config.width, config.num_heads
    match, mix = (
        jax.random.orthogonal(k, width).reshape(width, heads, width // heads)
        for k in (key_match, key_mix)
    )
    kernels = {"query": 0.6 * match, "key": 0.6 * match, "value": mix}
    kernels["out"] = -0.6 * mix.transpose(1, 2, 0)
    return kernels


def init_params(config: Config, seed: int) -> Params:
    """Initializes both towers; the patch embedding starts from cosines and expects centered pixels."""
    key_vision, key_text = jax.random.split(jax.random.key(seed))
    towers = config.towers
    image, token = jnp.zeros((1, GRID * PATCH, GRID * PATCH, 3)), jnp.zeros((1, 1), jnp.int32)
    vision = towers.vision().init(key_vision, image)["params"]
    text = towers.text.init(key_text, token, token)["params"]
    kernel = jnp.asarray(cosine_filters(config.width, config.width // 8))
    descend(vision, towers.embedding[:-1])[towers.embedding[-1]] = kernel
    for block, key in enumerate(jax.random.split(key_vision, config.depth)):
        tower = descend(vision, towers.blocks)[f"encoderblock_{block}"]
        for name, start in contrast_attention(config, key).items():
            tower["MultiHeadDotProductAttention_0"][name]["kernel"] = start
    text[towers.temperature] = towers.encode_temperature(config.temperature)
    return {"vision": vision, "text": text}


def descend(tree: Params, names: tuple[str, ...]) -> Params:
    """Returns the subtree of a tree below the given names."""
    for name in names:
        tree = tree[name]
    return tree


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def encode_images(
    config: Config,
    params: Params,
    images: Array,
    offset: Int[Array, " 2"] | None = None,
    vv_from: int | None = None,
):
    """Returns unit class tokens [b g d] and patches [b h w d].

    `offset` selects a window of the positions; with `vv_from`, patches come from the value-value stream.
    """
    towers = config.towers
    vision, module = towers.native(params["vision"]), towers.vision()
    if offset is not None:
        tall = images.shape[1] // PATCH
        vision, module = towers.window(vision, offset, tall), towers.vision(grid=tall)
    features = module.apply({"params": vision}, towers.pixels(images), vv_from=vv_from)
    return unit(features.global_tokens), unit(features.patches[:, 0])


def encode_sentences(
    config: Config, params: Params, key: Array, batch: Batch
) -> Float[Array, "k s d"]:
    """Returns unit sentence embeddings; positions marked as prompts are near zero."""
    names, count, length = batch.ids.shape
    ids, paddings, prompts = (
        x.reshape(names * count, length) for x in (batch.ids, batch.paddings, batch.prompts)
    )
    model, variables = config.towers.text, {"params": params["text"]}
    words = model.apply(variables, ids, method="embed")
    empty = 0.02 * jax.random.normal(key, words.shape)
    embeddings = jnp.where(prompts[..., None], empty, words)
    sentences = model.apply(variables, embeddings, paddings, method="encode")
    return unit(sentences).reshape(names, count, -1)


def loss_fn(
    config: Config, params: Params, key: Array, batch: Batch, vv_from: int | None = None
) -> tuple[Array, dict[str, Array]]:
    """Returns the weighted sum of the losses listed in the module docstring, and each loss by name."""
    tau, classes = config.temperature, config.classes
    tokens, patches = encode_images(config, params, batch.images, batch.offset, vv_from)
    sentences = encode_sentences(config, params, key, batch)
    groups = sentences.reshape(*sentences.shape[:1], len(GROUPS), -1, config.width)
    states = unit(groups.mean(2))  # [k, 3, d]
    anomalous = unit(groups[:, 1:].mean((1, 2)))
    direction = (anomalous - states[:, 0])[
        batch.aligned
    ] / tau  # [b, d]: the logit of the pair is linear

    label = (batch.group > 0).astype(jnp.float32)
    classed = states[:classes].reshape(-1, config.width)
    target = batch.category * len(GROUPS) + batch.group
    image = optax.softmax_cross_entropy_with_integer_labels(
        jnp.einsum("bgd,cd->bgc", tokens, classed) / tau, target[:, None]
    ).mean()
    state = optax.sigmoid_binary_cross_entropy(
        jnp.einsum("bgd,bd->bg", tokens, direction), label[:, None]
    ).mean()

    hit = (batch.touched > 0.04).astype(jnp.float32)
    grazed = (batch.touched > 0) & (batch.touched <= 0.04)
    normal = 1 - hit - grazed
    share = config.anomalous_share
    weight = share * hit / jnp.maximum(hit.sum(), 1) + (1 - share) * normal / normal.sum()
    logits = jnp.einsum("bhwd,bd->bhw", patches, direction)
    patch = jnp.sum(weight * optax.sigmoid_binary_cross_entropy(logits, hit))
    top = optax.sigmoid_binary_cross_entropy(logits.max((1, 2)), label).mean()
    dense_target = batch.category[:, None, None] * len(GROUPS) + jnp.where(
        hit > 0, batch.group[:, None, None], 0
    )
    dense = optax.softmax_cross_entropy_with_integer_labels(
        jnp.einsum("bhwd,cd->bhwc", patches, classed) / tau, dense_target
    )
    dense = jnp.sum(weight * dense)

    # Without this loss, all sentences stay similar for a long time, and the images have no targets to
    # separate.
    first, second = (
        groups[:, :, 0].reshape(-1, config.width),
        groups[:, :, 1].reshape(-1, config.width),
    )
    text = optax.softmax_cross_entropy_with_integer_labels(
        first @ second.T / tau, jnp.arange(len(first))
    ).mean()
    terms = {
        "image": image,
        "state": state,
        "patch": patch,
        "top": top,
        "dense": dense,
        "text": text,
    }
    return sum(getattr(config, f"{name}_loss") * term for name, term in terms.items()), terms
