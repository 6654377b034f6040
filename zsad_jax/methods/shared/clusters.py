"""Clusters of tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST


def kmeans(points: Float[Array, "n d"], count: int, *, steps: int) -> Int[Array, " n"]:
    """Returns the cluster of each point after `steps` of Lloyd's algorithm, with a deterministic start.

    The first center is the first point, each further one the point that is farthest from those before it.
    """
    # All distances follow from products of points, since centers are means of points.
    products = jnp.matmul(points, points.T, precision=HIGHEST)
    squares = jnp.diagonal(products)
    distances = squares[:, None] + squares - 2 * products

    def choose(nearest: Array, _: None) -> tuple[Array, Array]:
        chosen = jnp.argmax(nearest)
        return jnp.minimum(nearest, distances[chosen]), chosen

    _, starts = jax.lax.scan(choose, jnp.full(len(points), jnp.inf), length=count)

    def step(_: int, labels: Array) -> Array:
        member = jax.nn.one_hot(labels, count)
        sizes = member.sum(axis=0)
        share = member / jnp.maximum(sizes, 1)
        # |x - c|² - |x|² = |c|² - 2 x c, for the center c = sum_j share_j x_j
        inner = jnp.matmul(products, share, precision=HIGHEST)
        gaps = (share * inner).sum(axis=0) - 2 * inner
        return jnp.argmin(jnp.where(sizes > 0, gaps, jnp.inf), axis=1)

    labels: Array = jax.lax.fori_loop(0, steps, step, distances[:, starts].argmin(axis=1))
    return labels
