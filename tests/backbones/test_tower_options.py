"""Tests of the form "open_clip" of CLIP, and of options of the towers that single methods need."""

import pathlib

import jax
import numpy as np
import pytest

from zsad_jax.backbones import load_backbone
from zsad_jax.methods.shared.similarity import normalize

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture(autouse=True, scope="module")
def exact():
    """Runs matrix products in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        yield


def read(method):
    with np.load(GOLDENS / method / f"{method}_tiny.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def openai():
    path = GOLDENS / "tiny_clip_zsad" / "weights.npz"
    return load_backbone("clip", weights=path, num_heads=4, text_num_heads=3)


@pytest.fixture(scope="module")
def clip(openai):
    return openai.in_form("open_clip")


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


# --- forms -----------------------------------------------------------------------------------------------


def test_open_clip_form_matches_golden_of_april_gan(clip):
    golden = read("aprilgan")
    images = golden["in/images"].transpose(0, 2, 3, 1)
    encode = jax.jit(clip.encode_image, static_argnames=("layers", "patch_norm"))
    features = encode(clip.params, images, layers=(2, 4, 6, 8), patch_norm=False)
    assert_close(features.global_tokens[:, 0], golden["out/image_features_raw"])
    for layer, patches in enumerate(np.moveaxis(features.patches, 1, 0)):
        assert_close(patches.reshape(2, 36, -1), golden[f"out/patch_tokens_{layer}"][:, 1:])
    ids = golden["in/token_ids_obj0_abnormal"][:, :20]
    text = normalize(jax.jit(clip.encode_text)(clip.params, ids, np.int32(ids == 0)))
    assert_close(normalize(text.mean(axis=0)), golden["out/text_features_0"][:, 1])


def test_forms_share_parameters(openai, clip):
    assert (openai.form, clip.form) == ("openai", "open_clip")
    assert clip.params is openai.params
    np.testing.assert_array_equal(clip.tokenize(["object"]), openai.tokenize(["object"]))
    again, images = clip.in_form("openai"), np.ones((1, 84, 84, 3), np.float32)
    first, second, other = (
        model.encode_image(model.params, images).patches for model in (openai, again, clip)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


def test_family_without_forms_is_unchanged():
    backbone = load_backbone("tips-nano")
    assert backbone.in_form("open_clip") is backbone.in_form("openai") is backbone
