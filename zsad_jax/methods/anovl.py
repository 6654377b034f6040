"""AnoVL (arXiv 2308.15939): value-value attention, sentences on states, and patches adapted to each image.

Nothing is learned before an image is seen; a few steps without labels then adapt its patches.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.feature_cache import Images
from zsad_jax.methods.base import NOTHING_LEARNED, Category, Method, Scores, score_fn, vision_side
from zsad_jax.methods.shared import anomaly_map, layers, prompts
from zsad_jax.methods.shared.augmentation import GRAY
from zsad_jax.methods.shared.config import MAX_SIGMA, VISION_DEPTH, Fields, OpenClipConfig, Recipe
from zsad_jax.methods.shared.similarity import cosines, normalize
from zsad_jax.utils.config import config_from, within

CLASS_NAMES = {"macaroni1": "macaroni", "macaroni2": "macaroni"}
_PHOTOS = prompts.texts(
    "a cropped photo of the {}, a cropped photo of a {}, a close-up photo of a {}, a close-up photo of the {},"
    " a bright photo of a {}, a bright photo of the {}, a dark photo of the {}, a dark photo of a {},"
    " a jpeg corrupted photo of a {}, a jpeg corrupted photo of the {}, a blurry photo of the {},"
    " a blurry photo of a {}, a photo of a {}, a photo of the {}, a photo of a small {},"
    " a photo of the small {}, a photo of a large {}, a photo of the large {},"
    " a photo of the {} for visual inspection, a photo of a {} for visual inspection,"
    " a photo of the {} for anomaly detection, a photo of a {} for anomaly detection"
)


def reword(templates: Sequence[str], old: str, new: str) -> tuple[str, ...]:
    """Returns templates with `new` in place of the noun `old`, after the article that it needs."""
    article = "an" if new[0] in "aeiou" else "a"
    replaced = (template.replace(old, new) for template in templates)
    return tuple(re.sub(rf"\ban? {new}", f"{article} {new}", one) for one in replaced)


TEMPLATES = sum(
    (
        reword(_PHOTOS, "photo", noun)
        for noun in ("industrial photo", "industrial image", "manufacturing image")
    ),
    (),
)


def _make_views() -> tuple[Float[np.ndarray, "v 2 3"], Bool[np.ndarray, " v"]]:
    """Returns the maps of positions of all views but the image itself, and which of them are gray.

    A map leads from a position in a view to that in the image; the center is 0, the outermost pixels are at 1.
    """
    turns = np.pi * np.array([-4, -3, -2, -1, 1, 2, 3, 4, 8, 16, 24]) / 16
    cos, sin, zero = np.cos(turns), np.sin(turns), np.zeros(len(turns))
    # Rounded, so that quarter turns move pixels onto pixels.
    turned = np.round(np.stack([[cos, -sin, zero], [sin, cos, zero]]).transpose(2, 0, 1), 12)
    shifts = [(x * by, y * by) for by in (0.1, 0.2) for x in (-1, 1) for y in (-1, 1)]
    shifted = [[[1, 0, x], [0, 1, y]] for x, y in shifts]
    flipped, same = [[-1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 1, 0]]
    maps = np.concatenate([turned, shifted, [flipped, same]]).astype(np.float32)
    return maps, np.arange(len(maps)) == len(maps) - 1


VIEWS = _make_views()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnoVLConfig(prompts.SentencesConfig, OpenClipConfig):
    """Options of AnoVL; the defaults are those of the published numbers, except on VisA (docs/methods.md).

    Attributes:
      textures: class names whose templates have "textural photo" for "industrial image", and "surface picture"
        for "manufacturing image".
      vv_from: first block with value-value attention: all of ViT-B's; for ViT-L see docs/methods.md.
      views: whether the image score is a mean over 22 views of an image, see `view`, or that of the image.
      pooling: side of the window, in patches, over which probabilities of patches are averaged; odd.
      adapter_steps: steps of an adapter that is new for each image, see `adapt`; 0: patches are not adapted.
      adapter_rate, adapter_decay: learning rate and weight decay of these steps.
      adapter_share: share of the adapted patch, the rest is the patch as it was.
      noise, noise_weight: standard deviation of the noise on patches, and weight of the term of the loss.
      adapter_seed: of the noise and of the adapter's first weights, the same ones for each image.
    """

    name: ClassVar[str] = "anovl"
    title: ClassVar[str] = "AnoVL"
    recipe: ClassVar[Recipe] = Recipe(
        backbone={"name": "clip-vit-b16-plus-240", "resize": "bilinear"}
    )
    feature_layers: ClassVar[tuple[int, ...]] = (VISION_DEPTH,)  # type: ignore[misc]
    init_std: ClassVar[float] = 0.0  # type: ignore[misc]

    normal_states: tuple[str, ...] = prompts.texts(
        "normal {}, flawless {}, perfect {}, unblemished {}, {} without flaw, {} without defect,"
        " {} without damage"
    )
    abnormal_states: tuple[str, ...] = prompts.texts(
        "damaged {}, abnormal {}, imperfect {}, blemished {}, {} with flaw, {} with defect,"
        " {} with damage"
    )
    templates: tuple[str, ...] = TEMPLATES
    textures: tuple[str, ...] = ("carpet", "leather", "grid", "tile", "wood")
    vv_from: int | None = within(1, 1, VISION_DEPTH)
    sigma: float = within(0.0, 0, MAX_SIGMA)
    temperature: float = within(1.0, 1e-6)
    views: bool = True
    pooling: int = within(3, 1, 99)
    adapter_steps: int = within(5, 0)
    adapter_rate: float = within(1e-3, 0)
    adapter_decay: float = within(0.01, 0)
    adapter_share: float = within(0.5, 0, 1)
    noise: float = within(0.055, 0)
    noise_weight: float = within(0.5, 0)
    adapter_seed: int = within(0, 0, 2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("pooling", self.pooling % 2 == 1, "an odd number of patches")
        if not self.adapter_steps:
            own = "adapter_rate", "adapter_decay", "adapter_share", "adapter_seed"
            self.reject_unused("without adapter_steps", *own, "noise", "noise_weight")

    @property
    def draws(self) -> str | None:
        return "adapter_seed" if self.adapter_steps else None


def anovl(backbone: Backbone, config: AnoVLConfig | Fields | None = None) -> Method:
    """Returns AnoVL over a backbone whose images and texts share a space.

    Its params are {}; its maps have one channel; its extras are "text_features", "patch_scores" before pooling,
    and "views", the score of each view. For the scores see `compute`, for the adapter `adapt`.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(AnoVLConfig, config)
    backbone = backbone.in_form(config.tower)
    photos = reword(config.templates, "industrial image", "textural photo")
    on_textures = reword(photos, "manufacturing image", "surface picture")
    objects = config.family()
    textures = dataclasses.replace(objects, templates=on_textures)
    side = vision_side(backbone, config, num_maps=1)

    def features(frozen: Params, params: Params, images: Images) -> VisionFeatures:
        """Returns the features of the images; their global tokens are one of each view."""
        found: VisionFeatures = side["features"](frozen, params, images)

        def encode(turned: tuple[Array, Array]) -> Float[Array, "b d"]:
            viewed = view(images, *turned)
            tokens = backbone.encode_image(frozen, viewed, cls_norm=config.cls_norm).global_tokens
            return tokens[:, config.global_token]

        if not config.views:
            return found
        # View by view: all at once would take 22 times the memory.
        others = jnp.moveaxis(jax.lax.map(encode, jax.tree.map(jnp.asarray, VIEWS)), 0, 1)
        own = found.global_tokens[:, [config.global_token]]
        return found._replace(global_tokens=jnp.concatenate([own, others], axis=1))

    def describe(name: str) -> list[str]:
        family = textures if name in config.textures else objects
        normal, anomalous = family.sentences(CLASS_NAMES.get(name, name))
        return normal + anomalous

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> dict[str, Any]:
        """Returns the two texts of each class, and for the adapter the unit-norm "sentences" of both."""
        texts = [text for name in class_names for text in describe(name)]
        embeddings = prompts.encode_sentences(backbone, frozen, texts)
        embeddings = embeddings.reshape(len(class_names), -1, embeddings.shape[-1])
        normal = len(config.normal_states) * len(config.templates)
        # Sums serve as means, since they are normalized.
        sums = [x.sum(axis=1) for x in jnp.split(embeddings, [normal], axis=1)]
        return {"text": normalize(jnp.stack(sums, axis=1)), "sentences": normalize(embeddings)}

    def logits(tokens: Float[Array, "*n d"], text: Float[Array, "*b 2 d"]) -> Float[Array, "*n 2"]:
        return cosines(tokens, text) / config.temperature

    def adapt(
        patches: Float[Array, "n d"], text: Float[Array, "2 d"], sentences: Float[Array, "t d"]
    ) -> Float[Array, "n d"]:
        """Returns (1 - s) x + s A(x) of the patches x of an image, with A(x) = tanh(n(x) W + b) E.

        E are the sentences, n(x) = x / |x|, s is `adapter_share`; W and b are drawn as PyTorch does, and AdamW
        minimizes mean(-sum_k p_k(x) log p_k(x)) + w mean(-log p_a(x + noise) - log p_n(x)) for the
        probabilities p = (p_n, p_a) of adapted patches. Everything starts anew for each image, also the moments
        of AdamW, so that the result is a function of this image alone. The published code redraws weights and
        noise for each image, but keeps the moments of the former image.
        """
        keys = jax.random.split(jax.random.key(config.adapter_seed))
        weights = layers.init_linear(keys[0], patches.shape[-1], len(sentences))
        noisy = patches + config.noise * jax.random.normal(keys[1], patches.shape)
        optimizer = optax.adamw(config.adapter_rate, weight_decay=config.adapter_decay)

        def mix(weights: layers.Linear, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
            near = jnp.tanh(layers.linear(weights, normalize(x)))
            adapted = jnp.matmul(near, sentences, precision=jax.lax.Precision.HIGHEST)
            return (1 - config.adapter_share) * x + config.adapter_share * adapted

        def loss(weights: layers.Linear) -> Float[Array, ""]:
            clean, noised = (
                jax.nn.log_softmax(logits(mix(weights, x), text)) for x in (patches, noisy)
            )
            entropy = -(jnp.exp(clean) * clean).sum(axis=-1).mean()
            return entropy - config.noise_weight * (noised[:, 1] + clean[:, 0]).mean()

        def step(state: tuple[layers.Linear, Any], _: None) -> tuple[Any, None]:
            weights, moments = state
            updates, moments = optimizer.update(jax.grad(loss)(weights), moments, weights)
            return (optax.apply_updates(weights, updates), moments), None

        start = weights, optimizer.init(weights)
        (weights, _), _ = jax.lax.scan(step, start, length=config.adapter_steps)
        return mix(weights, patches)

    def compute(
        frozen: Params,
        params: Params,
        compared: tuple[dict[str, Any], Category],
        features: VisionFeatures,
    ) -> Scores:
        """Returns p, the probability of "anomalous": its mean over views of the image, and that of patches."""
        known, category = compared
        text = known["text"][category]

        def p(tokens: Float[Array, "b *n d"]) -> Float[Array, "b *n"]:
            return jax.nn.softmax(logits(tokens, text))[..., 1]

        tokens = features.global_tokens
        views = p(tokens if config.views else tokens[:, [config.global_token]])
        patches = features.patches[:, 0].astype(jnp.float32)
        if config.adapter_steps:
            flat = patches.reshape(len(patches), -1, patches.shape[-1])
            adapted = jax.vmap(adapt)(flat, text, known["sentences"][category])
            patches = adapted.reshape(patches.shape)
        scores = p(patches)
        extras = {"text_features": text, "patch_scores": scores, "views": views}
        pooled = pool(scores, config.pooling)[..., None]
        return Scores({"global": views.mean(axis=1)}, pooled, extras)

    def make_map(patches: Float[Array, "b h w 1"], size: anomaly_map.Size) -> Float[Array, "b H W"]:
        return anomaly_map.upsample(patches, size, sigma=config.sigma, align_corners=True)[..., 0]

    key = side["features_key"]
    return Method(
        prototypes=prototypes,
        score=score_fn(compute, whole=True),
        score_range=(0.0, 1.0),
        aupro_thresholds="numpy",
        **NOTHING_LEARNED,
        **side,
    )._replace(
        features=features,
        features_key=(*key, "views", config.global_token) if config.views else key,
        anomaly_map=make_map,
        map_range=None,  # without a small temperature, maps have a small part of [0, 1]
    )


def view(
    images: Float[Array, "b S S 3"], positions: Float[Array, "2 3"], gray: Bool[Array, ""]
) -> Float[Array, "b S S 3"]:
    """Returns images seen through a map of positions, see `_make_views`, and in shades of gray if asked for.

    The 22 views of AnoVL are the image, eight rotations up to pi/4, eight diagonal shifts by 5 and 10 % of the
    side, three quarter turns, the mirror image, and the gray one. Beyond the outermost pixels images are
    reflected; between pixels they are interpolated.
    """
    half = (images.shape[1] - 1) / 2
    axis = np.float32(np.arange(images.shape[1]) - half)
    x, y = np.meshgrid(axis, axis)
    columns, rows = (a * x + b * y + (c + 1) * half for a, b, c in positions)
    sample = functools.partial(
        jax.scipy.ndimage.map_coordinates, coordinates=[rows, columns], order=1, mode="mirror"
    )
    moved = jax.vmap(jax.vmap(sample, in_axes=-1, out_axes=-1))(images)
    shades = (moved * GRAY).sum(axis=-1, keepdims=True)
    return jnp.where(gray, shades, moved)


def pool(scores: Float[Array, "b h w"], side: int) -> Float[Array, "b h w"]:
    """Returns means over windows of side x side patches; the border is repeated."""
    around = [(0, 0), (side // 2, side // 2), (side // 2, side // 2)]
    wide = jnp.pad(scores, around, mode="edge")
    total: Array = jax.lax.reduce_window(
        wide, 0.0, jax.lax.add, (1, side, side), (1, 1, 1), "VALID"
    )
    return total / side**2
