"""Tests of the linear operator against scipy's filter after a bilinear resize pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from zsad_jax.methods.shared.anomaly_map import (
    anomaly_map,
    gaussian_matrix,
    map_matrix,
    margin_map,
    upsample,
)


def resize_bilinear(image, size):
    """Resizes with half-pixel centers and repeated edges, one output pixel at a time."""
    result = np.empty(size)
    for y in range(size[0]):
        for x in range(size[1]):
            value = 0.0
            v = min(max((y + 0.5) * image.shape[0] / size[0] - 0.5, 0), image.shape[0] - 1)
            u = min(max((x + 0.5) * image.shape[1] / size[1] - 0.5, 0), image.shape[1] - 1)
            for i in (int(v), int(v) + 1):
                for j in (int(u), int(u) + 1):
                    weight = max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j))
                    if weight:
                        value += weight * image[i, j]
            result[y, x] = value
    return result


@settings(max_examples=12, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    sigma=st.sampled_from([0.0, 0.7, 4.0]),
)
def test_equals_resize_then_gaussian_filter(grid, size, sigma):
    # The kernel radius of 16 exceeds most of these sizes, so the border is reflected more than once.
    patches = np.random.default_rng(0).random(grid)
    expected = resize_bilinear(patches, size)
    if sigma:
        expected = gaussian_filter(expected, sigma)
    columns = map_matrix(grid[1], size[1], sigma).astype(float)
    actual = map_matrix(grid[0], size[0], sigma).astype(float) @ patches @ columns.T
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize(("grid", "size"), [((2, 3), (5, 7)), ((1, 4), (3, 1)), ((3, 3), (3, 3))])
def test_align_corners_joins_outermost_centers(grid, size):
    patches = np.random.default_rng(0).random(grid)
    positions = (np.linspace(0, n - 1, m) for n, m in zip(grid, size, strict=True))
    places = np.stack(np.meshgrid(*positions, indexing="ij"))
    expected = map_coordinates(patches, places, order=1)
    found = upsample(patches[None, ..., None], size, align_corners=True)
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=1e-6)


def test_non_square_batch_under_jit():
    patches = np.random.default_rng(1).random((2, 3, 5, 1)).astype(np.float32)
    maps = jax.jit(lambda x: anomaly_map(x, (20, 41), sigma=2.0))(patches)
    for one, expected in zip(maps, patches[..., 0], strict=True):
        expected = gaussian_filter(resize_bilinear(expected, (20, 41)), 2.0)
        np.testing.assert_allclose(one, expected, atol=2e-6)


def test_maps_each_channel():
    patches = jnp.asarray(np.random.default_rng(2).random((1, 4, 4, 3)), jnp.float32)
    by_channel = upsample(patches, 9)
    assert by_channel.shape == (1, 9, 9, 3)
    single = upsample(patches[..., 1:2], 9)[..., 0]
    np.testing.assert_allclose(by_channel[..., 1], single, atol=1e-6)
    summed = anomaly_map(patches, 9, sigma=0.0)
    np.testing.assert_allclose(summed, by_channel.sum(-1), atol=1e-6)


def test_constant_scores_give_constant_map():
    np.testing.assert_allclose(anomaly_map(jnp.full((1, 3, 3, 1), 0.3), 50), 0.3, atol=1e-6)


@pytest.mark.parametrize("size", [1, 5, 60])
def test_smoothing_preserves_the_sum(size):
    np.testing.assert_allclose(gaussian_matrix(size, 4.0).sum(axis=0), 1.0)


def test_operator_is_cached_and_read_only():
    matrix = map_matrix(7, 31, 4.0)
    assert map_matrix(7, 31, 4.0) is matrix
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_margin_map_is_the_softmax_of_upsampled_logits(sigma):
    logits = np.random.default_rng(3).normal(0, 9, (2, 4, 3, 3, 2)).astype(np.float32)
    pixels = jnp.stack([upsample(logits[..., i], 11, align_corners=True) for i in (0, 1)], axis=-1)
    expected = jax.nn.softmax(pixels)[..., 1].sum(axis=-1)
    found = margin_map(logits[..., 1] - logits[..., 0], 11, sigma=sigma)
    for one, layers in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, gaussian_filter(layers, sigma), atol=1e-5)
