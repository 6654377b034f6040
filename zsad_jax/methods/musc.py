"""MuSc (arXiv 2401.16753): unlabeled images of a category score one another; nothing is learned, no text.

Patches of normal images have similar patches in most other images, and anomalous patches do not: the score of a
patch is its mean distance to the images that have the most similar patches.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods.base import NOTHING_LEARNED, Blocks, Method, Scores, score_fn, vision_side
from zsad_jax.methods.shared.anomaly_map import Size, upsample
from zsad_jax.methods.shared.config import (
    CLIP,
    FOUR_LAYERS,
    MAX_SIGMA,
    Fields,
    MethodConfig,
    Recipe,
)
from zsad_jax.methods.shared.similarity import normalize
from zsad_jax.utils.config import config_from, within
from zsad_jax.utils.errors import UserError, plural

# Images whose distances to all others are in memory at a time: 1.4 GB among 1,000 images of 1,369 patches.
IMAGES_PER_PASS = 256
# Cosines in memory at a time: on a CPU, matrices that its cache does not hold take several times as long.
MAX_COSINES = 2**21


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuScConfig(MethodConfig):
    """Options of MuSc; the defaults are those of the published numbers.

    Attributes:
      degrees: sides of the windows, in patches, over which features are averaged; odd. Scores are means over
        degrees and layers.
      share: share of the other images whose distances count, the smallest ones. Their number is rounded up; the
        published code rounds it down, so that it needs five images.
      nearby: compare patches that are at most so many rows and columns apart, for aligned images; None: all.
      patch_norm: whether patch tokens pass the final norm (and the projection) of the vision tower; None: over
        vision-only backbones, as in the published code.
      neighbors: numbers of images over which image scores are averaged, see `rescore`; (): they are not.
    """

    name: ClassVar[str] = "musc"
    title: ClassVar[str] = "MuSc"
    needs_text: ClassVar[bool] = False
    # The published code runs OpenAI's weights with the exact GELU.
    recipe: ClassVar[Recipe] = Recipe(
        backbone={**CLIP, "activation": "gelu"}, method_for={"visa": {"neighbors": (1, 8, 9)}}
    )
    temperature: ClassVar[None] = None  # type: ignore[misc]
    init_std: ClassVar[float] = 0.0  # type: ignore[misc]

    feature_layers: tuple[int, ...] = FOUR_LAYERS
    sigma: float = within(0.0, 0, MAX_SIGMA)
    degrees: tuple[int, ...] = (1, 3, 5)
    share: float = within(0.3, 0, 1)
    nearby: int | None = within(None, 0)
    patch_norm: bool | None = None
    neighbors: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = bool(self.degrees) and all(one > 0 and one % 2 for one in self.degrees)
        self.require("degrees", odd, "at least one odd number, such as 3")
        self.require("neighbors", min(self.neighbors, default=1) > 0, "numbers of images from 1")


def musc(backbone: Backbone, config: MuScConfig | Fields | None = None) -> Method:
    """Returns MuSc over any backbone; its params are {}.

    The images of a category are scored together, see `mutual_scores` and `rescore`. Given references, each is
    scored alone: they take the place of the other images, and image scores are not averaged. The image score is
    the maximum of the map.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(MuScConfig, config)
    norm = backbone.text is None if config.patch_norm is None else config.patch_norm
    settings = tuple(itertools.product(range(len(config.feature_layers)), config.degrees))

    def make_map(patches: Float[Array, "b h w 1"], size: Size) -> Float[Array, "b H W"]:
        return upsample(patches, size, sigma=config.sigma, align_corners=True)[..., 0]

    @jax.jit
    def peaks(patches: Float[Array, "b h w 1"]) -> Float[Array, " b"]:
        return make_map(patches, backbone.preprocess.image_size).max(axis=(1, 2))

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c k l h w d"] | None:
        """Returns the patches of the references."""
        return None if references is None else references.patches

    def compute(
        frozen: Params, params: Params, compared: tuple[Any, Array], features: VisionFeatures
    ) -> Scores:
        """Returns scores of images by their distances to the references."""
        bank, category = compared

        def describe_all(patches: Float[Array, "l h w d"]) -> Float[Array, "s 1 h w d"]:
            return jnp.stack([describe(patches[None, layer], degree) for layer, degree in settings])

        def score_one(image: tuple[Float[Array, "l h w d"], Array]) -> Float[Array, "h w"]:
            own, references = describe_all(image[0]), bank[image[1]]
            compare = jax.vmap(functools.partial(distances, nearby=config.nearby))
            found = jax.lax.map(lambda one: compare(own, describe_all(one))[0], references)
            smallest = jnp.sort(found, axis=0)[: count_share(config.share, len(found))]
            return smallest.mean(axis=(0, 1, 2, 3))

        patches = jax.lax.map(score_one, (features.patches, category))[..., None]
        return Scores({"patch": peaks(patches)}, patches)

    def across(frozen: Params, params: Params, bank: None, blocks: Blocks, category: int) -> Scores:
        def described(layer: int, degree: int) -> Blocks:
            return lambda: ((describe(x.patches[:, layer], degree), valid) for x, valid in blocks())

        found = (mutual_scores(described(*one), config.share, config.nearby) for one in settings)
        patches: Any = np.mean([np.concatenate([*one]) for one in found], axis=0)[..., None]
        image: Any = np.concatenate([peaks(one[None]) for one in patches])
        if config.neighbors:
            tokens = [np.asarray(x.global_tokens)[valid] for x, valid in blocks()]
            token = np.concatenate(tokens)[:, config.global_token]
            image = rescore(image, token, config.neighbors)
        return Scores({"patch": image}, patches)

    return Method(
        prototypes=prototypes,
        score=score_fn(compute, whole=True),
        image_scores=("patch",),
        score_range=(0.0, 2.0),
        across=across,
        min_images=2,
        references="optional",
        **NOTHING_LEARNED,
        **vision_side(backbone, config, patch_norm=norm),
    )._replace(anomaly_map=make_map, map_range=None)


@functools.partial(jax.jit, static_argnums=1)
def describe(patches: Float[Array, "b h w d"], degree: int) -> Float[Array, "b h w d"]:
    """Returns unit-norm features of the windows of `degree` x `degree` patches (LNAMD)."""
    return normalize(average_windows(patches, degree))


def average_windows(patches: Float[Array, "b h w d"], degree: int) -> Float[Array, "b h w d"]:
    """Normalizes each image to mean 0 and variance 1, then averages windows; outside of the grid are zeros."""
    x = patches.astype(jnp.float32)
    mean, variance = (f(x, axis=(1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    for window in ((1, degree, 1, 1), (1, 1, degree, 1)):  # rows, then columns: fewer sums
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME")
    return x / degree**2


@functools.partial(jax.jit, static_argnums=2)
def distances(
    x: Float[Array, "b h w d"], y: Float[Array, "c h w d"], nearby: int | None = None
) -> tuple[Float[Array, "b c h w"], Float[Array, "c b h w"]]:
    """Returns the distance of each patch of an image to the nearest patch of another one, in both directions.

    |x - y|² = 2 - 2 x·y for the unit-norm patches of x and y.
    """
    h, w, d = x.shape[1:]
    row, column = np.divmod(np.arange(h * w), w)
    steps = np.maximum(abs(row - row[:, None]), abs(column - column[:, None]))

    def compare(
        patches: Float[Array, "n d"], other: Float[Array, "m d"]
    ) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        # Full precision: near 1, the errors of an accelerator's default would exceed most distances.
        cosines = jnp.einsum("md,nd->mn", other, patches, precision=jax.lax.Precision.HIGHEST)
        if nearby is not None:
            cosines = jnp.where(steps <= nearby, cosines, -1)
        # Both directions of one product, which takes nearly all of the time.
        return cosines.max(axis=0), cosines.max(axis=1)

    def compare_all(patches: Float[Array, "n d"]) -> Any:
        others, together = y.reshape(-1, h * w, d), max(MAX_COSINES // (h * w) ** 2, 1)
        return jax.lax.map(functools.partial(compare, patches), others, batch_size=together)

    there, back = jax.lax.map(compare_all, x.reshape(-1, h * w, d))
    there, back = (jnp.sqrt(jnp.maximum(2 - 2 * cosines, 0)) for cosines in (there, back))
    return there.reshape(*there.shape[:2], h, w), back.swapaxes(0, 1).reshape(len(y), -1, h, w)


def count_share(share: float, count: int) -> int:
    """Returns the rounded-up share of a count, at least 1."""
    return max(math.ceil(share * count - 1e-9), 1)  # 0.07 * 100 is a little more than 7


def mutual_scores(
    blocks: Blocks, share: float = 0.3, nearby: int | None = None
) -> Iterator[Float[np.ndarray, "b h w"]]:
    """Yields by block the score of each patch p of each valid image i: its mean smallest distance (MSM).

    d_j(p) = min |p - q| over the patches q of image j, for all images j other than i. The score is the mean of
    the smallest ones, as many as `MuScConfig.share` says. The features of the blocks are unit-norm patches.

    Raises:
      UserError: there is only one valid image.
    """
    valid: dict[int, np.ndarray] = {}  # by block; complete after the first pass
    start, back = 0, None
    while start in valid or not valid:
        queries: dict[int, Array] = {}
        found: dict[tuple[int, int], Array] = {}  # distances of the images of a block to another
        # The first block of the pass comes first, so that a single pass reads every block once.
        later = itertools.islice(enumerate(blocks()), start, None)
        others = itertools.chain(later, itertools.islice(enumerate(blocks()), start))
        for other, (patches, valid[other]) in others:
            if other >= start and len(queries) * len(patches) < IMAGES_PER_PASS:
                queries[other] = patches
            jax.block_until_ready(back)  # so that few blocks are in memory
            for query, own in queries.items():
                found[query, other], back = distances(own, patches, nearby)
                if other in queries:
                    found[other, query] = back
        images = np.concatenate([valid[block] for block in range(len(valid))])
        if images.sum() < 2:
            raise UserError(
                f"MuSc compares the images of a category, which has {plural(int(images.sum()), 'image')}."
                " Expected at least 2. Add images, or pass normal ones as references."
            )
        count = count_share(share, int(images.sum()) - 1)
        for query in queries:
            of_block = np.concatenate([found.pop((query, j)) for j in range(len(valid))], axis=1)
            of_block[:, ~images] = np.inf
            first = sum(len(valid[block]) for block in range(query))
            of_block[np.arange(len(of_block)), first + np.arange(len(of_block))] = np.inf
            smallest = np.partition(of_block[valid[query]], count - 1, axis=1)[:, :count]
            yield smallest.mean(axis=1)
        start += len(queries)


def rescore(
    scores: Float[np.ndarray, " n"], tokens: Float[np.ndarray, "n d"], neighbors: Sequence[int]
) -> Float[np.ndarray, " n"]:
    """Returns scores that are scaled to [0, 1] and averaged over images with similar global tokens (RsCIN).

    For each k of `neighbors`: the mean over the k images with the largest cosines, the image itself included,
    weighted by the cosines, negative ones by 0. The result is the mean of these means.
    """
    scaled = (scores - scores.min()) / (np.ptp(scores) or 1)
    unit = np.asarray(normalize(jnp.asarray(tokens)))
    cosines = np.maximum(unit @ unit.T, 0)
    np.fill_diagonal(cosines, 1)  # also where a token is zero
    order = np.argsort(-cosines, axis=1)
    weights = np.take_along_axis(cosines, order, axis=1)
    means = [
        np.sum(weights[:, :k] * scaled[order[:, :k]], axis=1) / weights[:, :k].sum(axis=1)
        for k in neighbors
    ]
    return np.asarray(np.mean(means, axis=0))
