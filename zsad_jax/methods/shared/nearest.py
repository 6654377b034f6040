"""Distances of patches to those of normal reference images."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zsad_jax.methods.base import Category
from zsad_jax.methods.shared.similarity import normalize

Metric = Literal["cosine", "L2"]


def patch_rows(patches: Float[Array, "*b h w d"], metric: Metric) -> Float[Array, "*b n d"]:
    """Returns patch tokens as rows, with unit norm for cosines."""
    rows = patches.astype(jnp.float32).reshape(*patches.shape[:-3], -1, patches.shape[-1])
    return normalize(rows) if metric == "cosine" else rows


def distances(
    bank: Float[Array, "c r n d"],
    category: Category,
    patches: Float[Array, "b h w d"],
    *,
    k: int = 1,
    metric: Metric = "cosine",
    valid: Bool[Array, "c r n"] | None = None,
) -> Float[Array, "b h w"]:
    """Returns the mean distance to the k nearest reference patches, or to all of them where there are fewer.

    The distance is 1 - cosine, or for "L2" the root of the mean square. `bank` has the `patch_rows` of r
    references of each category, of which only those that are `valid` are compared (None: all). One reference
    is compared at a time, so that only the distances to its patches are in memory.
    """
    tokens = patch_rows(patches, metric)
    k = min(k, bank.shape[1] * bank.shape[2])
    highest = jax.lax.Precision.HIGHEST  # others round cosines by as much as 1 - cosine

    def compare(nearest: Array, number: Array) -> tuple[Array, None]:
        others = bank[category, number]
        found = 1 - (products := jnp.einsum("bnd,bmd->bnm", tokens, others, precision=highest))
        if metric == "L2":
            x, y = (jnp.square(rows).sum(axis=-1) for rows in (tokens, others))
            found = x[..., None] + y[:, None] - 2 * products
        found = jnp.maximum(found, 0)  # rounding can make it negative
        if valid is not None:
            found = jnp.where(valid[category, number][:, None], found, jnp.inf)
        if k == 1:  # much faster than to sort
            return jnp.minimum(nearest, found.min(axis=-1, keepdims=True)), None
        return -jax.lax.top_k(-jnp.concatenate([nearest, found], axis=-1), k)[0], None

    start = jnp.full((*tokens.shape[:2], k), jnp.inf)
    nearest, _ = jax.lax.scan(compare, start, jnp.arange(bank.shape[1]))
    found = nearest.mean(axis=-1, where=jnp.isfinite(nearest))
    return (found if metric == "cosine" else jnp.sqrt(found)).reshape(patches.shape[:3])
