"""Random changes of training images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MAX_ANGLE, MAX_SHIFT = np.pi / 6, 0.15  # the shift as a share of the side


def move(
    key: Array, image: Float[Array, "S S 3"], mask: Float[Array, "S S"], *, probability: float
) -> tuple[Float[Array, "S S 3"], Float[Array, "S S"]]:
    """Rotates, shifts and flips an image and its mask, each at random and by one resampling.

    What comes from outside of the image is 0, the mean color of a normalized image, and normal.

    Args:
      key: that of the image.
      image: normalized for the tower.
      mask: its mask.
      probability: of the rotation, within 30 degrees; of the shift, within 15 % of the side along each axis;
        and of the flip of each axis.
    """
    used_key, angle_key, shift_key = jax.random.split(key, 3)
    used = jax.random.bernoulli(used_key, probability, (4,))
    angle = used[0] * jax.random.uniform(angle_key, (), minval=-MAX_ANGLE, maxval=MAX_ANGLE)
    shift = used[1] * jax.random.uniform(shift_key, (2,), minval=-MAX_SHIFT, maxval=MAX_SHIFT)
    side = len(mask)
    center = (side - 1) / 2
    # Where each pixel comes from: back through flips, shift and rotation, about the center.
    places = jnp.moveaxis(jnp.indices((side, side)) - center, 0, -1)
    y, x = jnp.moveaxis(places * (1 - 2 * used[2:]) - shift * side, -1, 0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    sources = cos * y - sin * x + center, sin * y + cos * x + center
    resample = jax.scipy.ndimage.map_coordinates
    bilinear = functools.partial(resample, coordinates=sources, order=1)
    return jax.vmap(bilinear, -1, -1)(image), resample(mask, sources, order=0)
