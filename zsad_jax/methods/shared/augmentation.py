"""Random changes of training images, whose values are in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.backbones.base import AnyArray

Image = Float[Array, "S S 3"]
Mask = Float[Array, "S S"]
Places = Float[Array, "2 S S"]  # rows and columns, from the center
MAX_ANGLE, MAX_SHIFT = np.pi / 6, 0.15  # the shift as a share of the side
QUARTERS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)], np.float32)  # cosines and sines
GRAY = np.array([0.299, 0.587, 0.114], np.float32)
MAX_CHANGE = 0.2  # of gain, bias and color factors
NOISE = (10, 50)  # range of the variance, of values from 0 to 255
# Weights of neighbors along each axis: no blur, a box, and three Gaussians.
COUNTS = [(0, 0, 0, 1, 0, 0, 0), (0, 0, 1, 1, 1, 0, 0), (0, 0, 1, 2, 1, 0, 0)]
COUNTS += [(0, 1, 4, 6, 4, 1, 0), (2, 7, 14, 18, 14, 7, 2)]
BLURS = np.array([np.array(one, np.float32) / sum(one) for one in COUNTS])
# Rows of BLURS to draw from: in a third, colors change instead; a third is the box, a ninth each Gaussian.
CASES = np.array([0, 0, 0, 1, 1, 1, 2, 3, 4])


def move(
    key: Array, image: Image, mask: Mask, *, probability: float, fill: Float[AnyArray, "3"]
) -> tuple[Image, Mask]:
    """Rotates, shifts and flips an image and its mask, each at random and by one resampling.

    What comes from outside of the image has the color `fill` and is normal. The probability is that of the
    rotation, within 30 degrees; of the shift, within 15 % of the side along each axis; and of the flip of each
    axis.
    """
    used_key, angle_key, shift_key = jax.random.split(key, 3)
    used = jax.random.bernoulli(used_key, probability, (4, 1, 1))
    angle = used[0] * jax.random.uniform(angle_key, minval=-MAX_ANGLE, maxval=MAX_ANGLE)
    shift = used[1] * jax.random.uniform(shift_key, (2, 1, 1), minval=-MAX_SHIFT, maxval=MAX_SHIFT)
    # Where each pixel comes from: back through flips, shift and rotation.
    places = _grid(mask) * (1 - 2 * used[2:]) - shift * len(mask)
    return _resample(image, mask, _turn(places, jnp.cos(angle), jnp.sin(angle)), fill)


def vary(key: Array, image: Image, mask: Mask, *, probability: float) -> tuple[Image, Mask]:
    """Rotates an image and its mask, and changes light and sharpness of the image, as VCP-CLIP's code does.

    The probability is that of a rotation within 30 degrees, with reflected borders; of 0 to 3 quarter turns; of
    other contrast and brightness; of Gaussian noise; and of one of three: `recolor`, the mean of 3 x 3 pixels,
    or a Gaussian of 3, 5 or 7. The limits are those of albumentations 1.3, whose jitter also turns hues.
    """
    keys = jax.random.split(key, 8)
    used = jax.random.bernoulli(keys[0], probability, (5,))
    angle = used[0] * jax.random.uniform(keys[1], minval=-MAX_ANGLE, maxval=MAX_ANGLE)
    quarter = jnp.asarray(QUARTERS)[used[1] * jax.random.randint(keys[2], (), 0, 4)]
    places = _turn(_turn(_grid(mask), *quarter), jnp.cos(angle), jnp.sin(angle))
    border = (len(mask) - 1) / 2
    reflected = 2 * jnp.clip(places, -border, border) - places
    image, mask = _resample(image, mask, reflected, np.zeros(3))
    gain, bias = used[2] * jax.random.uniform(keys[3], (2,), minval=-1, maxval=1) * MAX_CHANGE
    image = jnp.clip((1 + gain) * image + bias, 0, 1)
    variance = used[3] * jax.random.uniform(keys[4], minval=NOISE[0], maxval=NOISE[1])
    noise = jnp.sqrt(variance) / 255 * jax.random.normal(keys[5], image.shape)
    # XLA would compute the noise again for each use of the image.
    image = jax.lax.optimization_barrier(jnp.clip(image + noise, 0, 1))
    case = jnp.asarray(CASES)[jax.random.randint(keys[6], (), 0, len(CASES))]
    of_colors = jnp.float32(used[4] & (case == 0))
    colors = recolor(keys[7], image, probability=of_colors, limit=MAX_CHANGE)
    return _blur(colors, jnp.asarray(BLURS)[used[4] * case]), mask


def recolor(key: Array, image: Image, *, probability: float | Array, limit: float) -> Image:
    """Changes brightness, contrast and saturation, each with this probability, by factors in 1 ± `limit`."""
    used_key, factor_key = jax.random.split(key)
    used = jax.random.bernoulli(used_key, probability, (3,))
    change = limit * jax.random.uniform(factor_key, (3,), minval=-1, maxval=1)
    factors = jnp.where(used, 1 + change, 1)
    for i, factor in enumerate(factors):
        # Away from or towards black, the mean gray, and each pixel's own gray.
        gray = (image * GRAY).sum(axis=-1, keepdims=True)
        image = jnp.clip(factor * image + (1 - factor) * (0, gray.mean(), gray)[i], 0, 1)
    return image


def _blur(image: Image, weights: Float[Array, " n"]) -> Image:
    """Returns the sums of neighbors in rows and columns by these weights, reflected at the borders."""
    last, reach = len(image) - 1, len(weights) // 2
    rows = np.arange(len(image))[:, None]
    neighbors = last - np.abs(last - np.abs(rows + np.arange(-reach, reach + 1)))
    # A product: XLA would fuse sums of shifted images with all that precedes them, once for each neighbor.
    matrix = jnp.zeros(2 * [len(image)]).at[rows, neighbors].add(weights)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("yi,xj,ijc->yxc", matrix, matrix, image, precision=highest)


def _grid(mask: Mask) -> Places:
    return jnp.indices(mask.shape) - (len(mask) - 1) / 2


def _turn(places: Places, cos: Array, sin: Array) -> Places:
    y, x = places
    return jnp.stack([cos * y - sin * x, sin * y + cos * x])


def _resample(image: Image, mask: Mask, places: Places, fill: AnyArray) -> tuple[Image, Mask]:
    """Returns the image bilinearly, and the mask of the nearest pixels; outside are `fill` and 0."""
    last = len(mask) - 1
    places = places + last / 2

    def read(values: Array, at: Array, outside: AnyArray) -> Array:
        y, x = jnp.clip(at, 0, last).astype(int)
        inside = ((at >= 0) & (at <= last)).all(axis=0)
        return jnp.where(inside[..., None], values[y, x], outside)

    moved = jnp.zeros_like(image)
    for corner in np.ndindex(2, 2):
        at = jnp.floor(places) + np.reshape(corner, (2, 1, 1))
        share = jnp.prod(1 - jnp.abs(places - at), axis=0)
        moved += share[..., None] * read(image, at, fill)
    return moved, read(mask[..., None], jnp.round(places), np.zeros(1))[..., 0]
