"""Tests of scores over SigLIP, whose probabilities are sigmoids."""

import pathlib

import jax
import numpy as np
import pytest

import zsad_jax
from zsad_jax.backbones import registry
from zsad_jax.methods import make_method

WEIGHTS = pathlib.Path(__file__).parents[1] / "goldens/siglip2/siglip2_native.npz"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """Returns the golden model with the tokenizer of the demo TIPS, for which its embedding is repeated."""
    path = tmp_path_factory.mktemp("siglip") / "siglip.npz"
    with np.load(WEIGHTS) as native:
        table = np.tile(native["params/txt/Embed_0/embedding"], (22, 1))[:2048]
        np.savez(path, **{**native, "params/txt/Embed_0/embedding": table})
    tokenizer = registry.locate("tips-nano").tokenizer
    return zsad_jax.load_backbone("siglip", weights=path, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["tipsomaly", "anomalyclip"])
@pytest.mark.parametrize("temperature", [None, 0.07])
def test_probabilities_follow_the_temperature(siglip, name, temperature):
    method = make_method(name, siglip, {"temperature": temperature})
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    frozen = siglip.params
    params = method.init(jax.random.key(0), frozen)
    features = method.features(frozen, params, images)
    prototypes = method.prototypes(frozen, params, ["metal nut"])
    extras = ("patch_cosines", "patch_probabilities")
    scores = method.score(frozen, params, prototypes, features, np.zeros(2, int), extras=extras)
    found = scores.extras["patch_probabilities"]
    if temperature is None:  # trained scale and bias
        logits = scores.extras["patch_cosines"] / siglip.temperature + siglip.logit_bias
        np.testing.assert_allclose(found, jax.nn.sigmoid(logits), rtol=1e-5)
    else:
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    expected = (1 - found[..., 0] + found[..., 1]) / 2
    np.testing.assert_allclose(scores.patches.ravel(), np.ravel(expected), rtol=1e-5)
