"""From patch scores to a pixel map: up-sampling and smoothing as one linear operator.

Both are linear and separable, so map = A S Bᵀ for patch scores S [h, w], with A = G U [H, h]: U is
the 1-D bilinear matrix (half-pixel centers) and G the 1-D Gaussian matrix. B is the same for the
columns.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Size = int | tuple[int, int]  # (H, W), or the side of a square


def bilinear_matrix(
    length: int, size: int, *, align_corners: bool = False
) -> Float[np.ndarray, "size length"]:
    """Returns the 1-D bilinear resize of `length` to `size` samples, without antialias.

    Centers are those of half pixels, or with `align_corners`, as in PyTorch, the outermost ones coincide.
    """
    if align_corners:
        centers = np.arange(size) * (length - 1) / max(size - 1, 1)
    else:
        # Beyond the outermost centers the border is repeated, as PyTorch does.
        centers = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    left = np.minimum(centers.astype(int), max(length - 2, 0))
    share = centers - left
    matrix = np.zeros((size, length))
    rows = np.arange(size)
    matrix[rows, left] += 1 - share
    matrix[rows, np.minimum(left + 1, length - 1)] += share
    return matrix


def gaussian_matrix(
    size: int, sigma: float, *, radius: int | None = None, border: Literal["half", "whole"] = "half"
) -> Float[np.ndarray, "n n"]:
    """Returns the 1-D Gaussian filter of scipy.ndimage: cut at 4 sigmas, border "reflect".

    Away from the borders, G[i, j] is proportional to exp(-(i - j)² / (2 sigma²)); each row adds up to 1.
    `sigma` is in samples; 0 gives the identity. With a `radius` it is cut there, and with the border "whole"
    reflected at the outermost samples, which is "reflect" in PyTorch.
    """
    if sigma == 0:
        return np.eye(size)
    radius = int(4 * sigma + 0.5) if radius is None else radius
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # Reflection at half a sample (d c b a | a b c d | d c b a), or a whole one (d c b | a b c d | c b a), as
    # often as the radius requires.
    whole = int(border == "whole")
    sources = (np.arange(size)[:, None] + offsets) % max(2 * (size - whole), 1)
    sources = np.where(sources < size, sources, 2 * size - 1 - whole - sources)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], sources), weights)
    return matrix


@functools.lru_cache(maxsize=64)
def map_matrix(
    length: int, size: int, sigma: float, align_corners: bool = False
) -> Float[np.ndarray, "size length"]:
    """Returns A = G U, from `length` patches to `size` smoothed pixels; read-only float32."""
    # A product in float64 that is rounded once, so that up-sampling and smoothing add no errors of their own.
    bilinear = bilinear_matrix(length, size, align_corners=align_corners)
    matrix: np.ndarray = gaussian_matrix(size, sigma) @ bilinear
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def upsample(
    patches: Float[Array, "b h w c"], size: Size, *, sigma: float = 0.0, align_corners: bool = False
) -> Float[Array, "b H W c"]:
    """Up-samples each channel of patch scores and smooths it with a Gaussian of `sigma` output pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    # Map = A S Bᵀ, one factor at a time: nothing of the size [H, W, h, w] is ever made.
    rows = map_matrix(patches.shape[1], height, float(sigma), align_corners)
    columns = map_matrix(patches.shape[2], width, float(sigma), align_corners)
    # Full precision: the default of an accelerator would round the scores to 8 bits of mantissa.
    highest = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("bhwc,Ww->bhWc", patches.astype(jnp.float32), columns, precision=highest)
    return jnp.einsum("bhWc,Hh->bHWc", wide, rows, precision=highest)


def anomaly_map(
    patches: Float[Array, "b h w c"], size: Size, *, sigma: float = 4.0
) -> Float[Array, "b H W"]:
    """Returns the anomaly map A S Bᵀ of patch scores, summed over channels; `sigma` is in output pixels."""
    return upsample(patches.sum(axis=-1, keepdims=True), size, sigma=sigma)[..., 0]


def grid_map(
    patches: Float[Array, "b h w c"], size: Size, *, sigma: float, radius: int
) -> Float[Array, "b H W"]:
    """Returns the sum over channels, smoothed on the grid of patches, then up-sampled, as in AA-CLIP.

    `sigma` and `radius` of the Gaussian are in patches. Outermost centers coincide.
    """
    rows, columns = (
        gaussian_matrix(length, sigma, radius=radius, border="whole").astype(np.float32)
        for length in patches.shape[1:3]
    )
    highest = jax.lax.Precision.HIGHEST
    grid = jnp.einsum("bhwc,Hh,Ww->bHW", patches, rows, columns, precision=highest)
    return upsample(grid[..., None], size, align_corners=True)[..., 0]


def margin_probabilities(margins: Float[Array, "b h w l"], size: Size) -> Float[Array, "b H W l"]:
    """Returns the probability of an anomaly at each pixel, from margins that are up-sampled first.

    A margin is the logit of the anomalous state less that of the normal one: as up-sampling is linear, its
    sigmoid is the softmax of both logits. Outermost centers coincide, as in APRIL-GAN and its successors.
    """
    return jax.nn.sigmoid(upsample(margins, size, align_corners=True))


def margin_map(
    margins: Float[Array, "b h w l"], size: Size, *, sigma: float = 0.0
) -> Float[Array, "b H W"]:
    """Returns the sum of `margin_probabilities` over l, smoothed with a Gaussian of `sigma` output pixels."""
    summed = margin_probabilities(margins, size).sum(axis=-1, keepdims=True)
    return (upsample(summed, size, sigma=sigma) if sigma else summed)[..., 0]
