"""Tests of windows of patches that pass through a vision tower alone."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zsad_jax
from zsad_jax.backbones.transformer import encode_windows
from zsad_jax.utils.errors import UserError


def mix(tokens):
    """Returns two tokens of each sequence, which depend on all of its tokens."""
    return jnp.tanh(tokens[:, :2] + 0.3 * tokens.sum(axis=1, keepdims=True))


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([(4, 5), (3, 3), (5, 4)]),
    st.sampled_from([(1,), (2, 3), (3,)]),
    st.sampled_from([2, 4]),
    st.integers(0, 1000),
)
def test_windows_equal_loops(grid, sizes, before, seed):
    h, w = grid
    tokens = np.random.default_rng(seed).normal(size=(2, before + h * w, 3)).astype(np.float32)
    for size, found in zip(sizes, encode_windows(mix, (), tokens, grid, sizes), strict=True):
        assert found.shape == (2, h - size + 1, w - size + 1, 2, 3)
        for row, column in np.ndindex(found.shape[1:3]):
            inside = [before + (row + y) * w + column + x for y in range(size) for x in range(size)]
            expected = np.tanh(
                tokens[:, :2]
                + 0.3 * tokens[:, [*range(before), *inside]].sum(axis=1, keepdims=True)
            )
            np.testing.assert_allclose(found[:, row, column], expected, atol=1e-6)


SIGLIP = pathlib.Path(__file__).parents[1] / "goldens/siglip2/siglip2_native.npz"


@pytest.fixture(params=["tips-nano", "clip-nano", "siglip"])
def encode(request):
    """Returns a function from images to windows of 2, 3 and 4 patches and the global tokens of the images."""
    files = {"weights": SIGLIP} if request.param == "siglip" else {}
    backbone = zsad_jax.load_backbone(request.param, **files)

    @jax.jit
    def run(images):
        with jax.default_matmul_precision("highest"):
            found = backbone.encode_image(backbone.params, images, windows=(2, 3, 4))
        return found.windows, found.global_tokens

    run.backbone = backbone
    return run


@pytest.fixture
def images(encode):
    side = 4 * encode.backbone.patch_size
    return np.random.default_rng(0).uniform(size=(2, side, side, 3)).astype(np.float32)


def test_window_of_all_patches_is_the_image(encode, images):
    """The order of tokens has no effect in a tower, so that any other choice of patches would differ."""
    (*_, whole), tokens = encode(images)
    assert whole.shape == (2, 1, 1, *tokens.shape[1:])
    np.testing.assert_allclose(whole[:, 0, 0], tokens, atol=1e-5)


def test_window_depends_on_its_own_patches_alone(encode, images):
    changed, patch = images.copy(), encode.backbone.patch_size
    changed[:, patch : 2 * patch, 2 * patch : 3 * patch] = 0  # row 1, column 2
    (before, _), (after, _) = encode(images), encode(changed)
    for size, one, other in zip((2, 3, 4), before, after, strict=True):
        moved = np.abs(one - other).max(axis=(-2, -1))
        for row, column in np.ndindex(moved.shape[1:]):
            inside = row <= 1 < row + size and column <= 2 < column + size
            assert (moved[:, row, column] > 1e-3).all() == inside
            assert (moved[:, row, column] < 1e-6).all() != inside


def test_windows_are_not_encoded_unless_requested(encode, images):
    backbone = encode.backbone
    assert backbone.encode_image(backbone.params, images).windows == ()


@pytest.mark.parametrize("windows", [(0,), (2, 5)])
def test_rejects_windows_that_do_not_fit(encode, images, windows):
    backbone = encode.backbone
    with pytest.raises(UserError, match=r"windows=.* The images have 4 patches a side. Pass sizes"):
        backbone.encode_image(backbone.params, images, windows=windows)
