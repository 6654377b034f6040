"""Maps and image scores that are scaled to [0, 1] over a category, as AA-CLIP and VCP-CLIP are evaluated."""

from collections.abc import Collection
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params
from zsad_jax.methods.base import Blocks, Category, Method, Patches, Scores
from zsad_jax.methods.shared.anomaly_map import Size

ImageScores = dict[str, Float[Array, " b"]]


class FuseFn(Protocol):
    """A function that returns image scores by name, given those of a method and the maxima of its maps."""

    def __call__(self, image: ImageScores, peaks: Float[Array, " b"], /) -> ImageScores: ...


def scale_over_category(
    method: Method, backbone: Backbone, fuse: FuseFn = lambda image, peaks: image
) -> Method:
    """Returns a method whose maps and image scores are scaled to [0, 1] over the images of a category.

    The smallest and the largest score, and pixel of all maps, become 0 and 1. Where images are scored alone,
    scores are not scaled. `fuse` makes the image scores of both; their names are `method.image_scores`.
    """
    image_size = backbone.preprocess.image_size

    def score(
        frozen: Params,
        params: Params,
        prototypes: PyTree,
        features: PyTree,
        category: Category,
        *,
        extras: Collection[str] = (),
    ) -> Scores:
        scores = method.score(frozen, params, prototypes, features, category, extras=extras)
        peaks = method.anomaly_map(scores.patches, image_size).max(axis=(1, 2))
        patches = _with_limits(scores.patches, 0.0, 1.0)
        return scores._replace(image=fuse(scores.image, peaks), patches=patches)

    @jax.jit
    def score_block(
        frozen: Params, params: Params, prototypes: PyTree, features: PyTree, category: Category
    ) -> tuple[Scores, Float[Array, " b"], Float[Array, " b"]]:
        """Returns scores, and the minimum and maximum of each map."""
        if not method.cacheable:  # then they are the images
            features = method.features(frozen, params, backbone.preprocess.normalize(features))
        scores = method.score(frozen, params, prototypes, features, category)
        maps = method.anomaly_map(scores.patches, image_size)
        return scores, maps.min(axis=(1, 2)), maps.max(axis=(1, 2))

    def across(
        frozen: Params, params: Params, prototypes: Any, blocks: Blocks, category: int
    ) -> Scores:
        found = []
        for features, valid in blocks():
            categories = np.full(len(valid), category)
            scored = score_block(frozen, params, prototypes, features, categories)
            found.append(jax.tree.map(lambda x, rows=valid: np.asarray(x)[rows], scored))
        scores, lows, peaks = jax.tree.map(lambda *x: np.concatenate(x), *found)
        low, high = lows.min(), peaks.max()
        image = {name: _scale(x, x.min(), x.max()) for name, x in scores.image.items()}
        fused = fuse(image, _scale(peaks, low, high))
        scaled = Scores(fused, _with_limits(scores.patches, low, high))
        return Scores(*jax.tree.map(np.asarray, scaled))

    def make_map(patches: Patches, size: Size) -> Float[Array, "b H W"]:
        low, high = (patches[:, :1, :1, channel] for channel in (-2, -1))
        return _scale(method.anomaly_map(patches[..., :-2], size), low, high)

    return method._replace(
        score=score, across=across, anomaly_map=make_map, map_range=None, score_range=None
    )


def _scale(values: Any, low: Any, high: Any) -> Array:
    """Returns values that are 0 at `low` and 1 at `high`."""
    return jnp.asarray(values - low) / jnp.where(high > low, high - low, 1)


def _with_limits(patches: Patches, low: Any, high: Any) -> Patches:
    """Returns patch scores with two further channels, which `_scale` takes for the map."""
    limits = jnp.broadcast_to(jnp.array([low, high], patches.dtype), (*patches.shape[:-1], 2))
    return jnp.concatenate([patches, limits], axis=-1)
