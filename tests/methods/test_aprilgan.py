"""Tests of APRIL-GAN against the published code on a tiny CLIP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.methods import Batch, make_method
from zsad_jax.utils.errors import UserError

FEATURES, MAPS = 1e-5, 1e-4  # tolerances; MAPS follows a softmax with a small temperature
CLASSES = ("bottle", "metal_nut")


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("aprilgan", "aprilgan_tiny")


@pytest.fixture(scope="module")
def clip(load_golden_clip, golden):
    """Returns the golden's CLIP, whose tokenizer knows its sentences by their order."""
    loaded = load_golden_clip("tiny_clip_zsad", text_num_heads=3).in_form("open_clip")
    config, known = make_method("aprilgan", loaded).config, {}
    for name in ("bottle", "metal nut"):
        for state, states in (
            ("normal", config.normal_states),
            ("abnormal", config.abnormal_states),
        ):
            filled = [t.format(s.format(name)) for s in states for t in config.templates]
            known |= dict(zip(filled, golden[f"in/token_ids_obj0_{state}"], strict=True))

    def tokenize(texts):
        ids = np.stack([known[text] for text in texts])
        return ids, np.int32(ids == 0)

    side = dataclasses.replace(loaded.text, tokenize=tokenize)
    return dataclasses.replace(loaded, text=side, forms={})


@pytest.fixture(scope="module")
def method(clip):
    return make_method("aprilgan", clip)


@pytest.fixture(scope="module")
def params(method, golden):
    return jax.tree.map(jnp.asarray, method.import_params(authors_names(golden, "param/")))


@pytest.fixture(scope="module")
def features(method, clip, golden):
    images = np.moveaxis(golden["in/images"], 1, -1)
    return jax.jit(method.features)(clip.params, {}, images)


@pytest.fixture(scope="module")
def text(golden):
    return np.stack([golden[f"out/text_features_{i}"].T for i in range(2)])


@pytest.fixture(scope="module")
def batch(golden, text):
    return Batch(
        category=golden["in/class_index"],
        labels=jnp.array([0, 1]),
        masks=jnp.asarray(golden["in/masks"][:, 0]),
        has_mask=jnp.ones(2, bool),
        valid=jnp.ones(2, bool),
        class_names=CLASSES,
        fixed=text,
    )


def without(arrays, prefix):
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}


def authors_names(golden, prefix):
    """Returns arrays under the names in the authors' checkpoints."""
    return {f"trainable_linearlayer.{name}": x for name, x in without(golden, prefix).items()}


def test_text_matches_golden(method, clip, golden, assert_near):
    found = method.prototypes(clip.params, {}, ("bottle",))["text"]
    assert_near(found[0], golden["out/text_features_0"].T, FEATURES)


def test_features_match_golden(features, golden, assert_near):
    assert_near(features.global_tokens[:, 0], golden["out/image_features_raw"], FEATURES)
    for i in range(4):
        expected = golden[f"out/patch_tokens_{i}"][:, 1:]
        assert_near(features.patches[:, i].reshape(expected.shape), expected, FEATURES)


def test_scores_and_maps_match_golden(
    method, clip, params, features, text, batch, golden, assert_near
):
    found = jax.jit(method.score)(clip.params, params, {"text": text}, features, batch.category)
    assert_near(found.image["global"], golden["out/image_score"], MAPS)
    assert_near(method.anomaly_map(found.patches, 84), golden["out/map_sum"], MAPS)
    for i in range(4):
        one = method.anomaly_map(
            jnp.full_like(found.patches, -1e9).at[..., i].set(found.patches[..., i]), 84
        )
        assert_near(one, golden[f"out/layer_map_{i}"], MAPS)


def test_loss_and_gradient_match_golden(method, clip, params, features, batch, golden, assert_near):
    step = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    (loss, terms), gradient = step(clip.params, params, features, batch)
    assert_near(loss, golden["out/loss"], FEATURES)
    focal, dice = golden["out/loss_terms_focal_dice"].sum(axis=0)
    assert_near(terms["focal"], focal, FEATURES)
    assert_near(terms["dice_abnormal"], dice, FEATURES)
    expected = method.import_params(authors_names(golden, "grad/"))
    jax.tree.map(lambda found, value: assert_near(found, value, 1e-4), gradient, expected)


def test_padding_rows_change_nothing(method, clip, params, features, batch):
    padded = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.full_like(x[:1], 1)]), (features, batch)
    )
    rows = dataclasses.replace(padded[1], valid=jnp.array([True, True, False]), fixed=batch.fixed)
    expected, _ = method.loss(clip.params, params, features, batch)
    found, _ = method.loss(clip.params, params, padded[0], rows)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_references_add_their_distances(method, clip, params, features, text, batch):
    """Compares with loops over patches in float64."""
    references = jax.tree.map(lambda x: x[::-1, None], features)
    known = {
        "text": text,
        "banks": method.prototypes(clip.params, {}, ("bottle",), references)["banks"],
    }
    found = method.score(clip.params, params, known, features, batch.category)
    plain = method.score(clip.params, params, {"text": text}, features, batch.category)
    own = np.float64(features.patches)
    unit = own / np.linalg.norm(own, axis=-1, keepdims=True)
    h, w = own.shape[2:4]
    expected = np.zeros((2, h, w, 4))
    for b, layer, y, x in np.ndindex(2, 4, h, w):
        others = unit[1 - batch.category[b], layer].reshape(h * w, -1)
        expected[b, y, x, layer] = 1 - (others @ unit[b, layer, y, x]).max()
    np.testing.assert_allclose(found.patches[..., 4:], expected, atol=1e-6)
    np.testing.assert_array_equal(found.patches[..., :4], plain.patches)
    largest = expected.mean(axis=-1).max(axis=(1, 2)) / 2
    image = (plain.image["global"] + largest) / 2
    np.testing.assert_allclose(found.image["global"], image, atol=1e-6)
    added = 3 * method.anomaly_map(found.patches, 84) - method.anomaly_map(plain.patches, 84)
    corners = np.s_[:, ::83, ::83]
    np.testing.assert_allclose(
        added[corners], expected.sum(axis=-1)[:, :: h - 1, :: w - 1], atol=1e-5
    )


def test_rejects_states_without_name(clip):
    with pytest.raises(UserError, match="normal_states"):
        make_method("aprilgan", clip, {"normal_states": ("flawless",)})
