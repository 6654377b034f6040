"""Tests of normalization, cosines and softmax over states, by hand."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.methods.shared.anomaly_map import anomaly_map
from zsad_jax.methods.shared.similarity import Scale, compare, cosines, normalize, scale_of


def test_normalize_by_hand():
    np.testing.assert_allclose(normalize(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)
    # Norms below the floor count as the floor; above it, the scale does not matter.
    small = normalize(jnp.array([3e-4, 4e-4]), floor=1e-3)
    np.testing.assert_allclose(small, [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(normalize(jnp.array([3e-4, 4e-4])), [0.6, 0.8], rtol=1e-6)


def test_normalize_is_float32_and_has_a_gradient_at_zero():
    assert normalize(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32
    gradient = jax.grad(lambda x: normalize(x).sum())(jnp.zeros(3))
    assert jnp.isfinite(gradient).all()


def test_each_image_uses_its_own_texts():
    features = jnp.array([[[2.0, 0.0]], [[2.0, 0.0]]])
    text = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [3.0, 0.0]]])
    np.testing.assert_allclose(cosines(features, text), [[[1, 0]], [[0, 1]]], atol=1e-6)
    low, high = 1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))
    compared = compare(features, features, text, text, Scale(0.5))
    for found in (compared.global_probabilities, compared.patch_probabilities):
        np.testing.assert_allclose(found, [[[high, low]], [[low, high]]], rtol=1e-5)


def test_accepts_any_axes_between_image_and_width():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    text = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 5)), jnp.float32)
    values = cosines(features, text)
    assert values.shape == (2, 3, 4, 2)
    one = features[1, 2, 3] @ text[1, 0]
    one /= jnp.linalg.norm(features[1, 2, 3]) * jnp.linalg.norm(text[1, 0])
    np.testing.assert_allclose(values[1, 2, 3, 0], one, rtol=1e-5)


def test_compares_each_layer_with_its_own_texts():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 4, 5)), jnp.float32)
    text = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 2, 5)), jnp.float32)
    values = cosines(features, text)
    assert values.shape == (2, 3, 4, 4, 2)
    for layer in range(3):
        expected = cosines(features[:, layer], text[:, layer])
        np.testing.assert_allclose(values[:, layer], expected, rtol=1e-5, atol=1e-6)


def test_config_temperature_precedes_the_backbones(backbone):
    assert scale_of(backbone, None) == (backbone.temperature, None, False)
    assert scale_of(backbone, 0.5) == (0.5, None, False)
    sigmoid = dataclasses.replace(backbone, logit_bias=-3.0)
    assert scale_of(sigmoid, None) == (backbone.temperature, -3.0, False)
    assert scale_of(sigmoid, 0.5) == (0.5, None, False)


SIGLIP = pathlib.Path(__file__).parents[1] / "goldens/siglip2/siglip2_golden.npz"


@pytest.mark.parametrize(("route", "renormalized"), [("bigvision", True), ("hf", False)])
def test_sigmoid_scores_match_golden(route, renormalized):
    """Compares with TIPSomaly's two ways of scoring over SigLIP2, whose texts 0 and 1 are the states."""
    golden = np.load(SIGLIP)
    text = np.broadcast_to(golden["txt_embedding"][:2], (2, 2, 48))
    tokens, patches = golden["img_embedding"][:, None], golden["img_patch_normalized"]
    scale = Scale(1 / float(golden["t_exp"][0]), float(golden["b"][0]), renormalized)
    found = compare(tokens, patches, text, text, scale)
    expected = golden[f"omaly_{route}_global"]
    np.testing.assert_allclose(found.global_probabilities[:, 0], expected, rtol=2e-5)
    np.testing.assert_allclose(found.patch_probabilities, golden[f"omaly_{route}_patch"], rtol=2e-5)
    maps = anomaly_map(found.patch_scores.reshape(2, 4, 4, 1), 64, sigma=4.0)
    np.testing.assert_allclose(maps, golden[f"omaly_{route}_map_sigma4"], rtol=2e-5)
