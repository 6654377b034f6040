"""Tests of VCP-CLIP against the published code on a tiny CLIP."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import load_backbone
from zsad_jax.methods import Batch, count_parameters, make_method, param_shapes
from zsad_jax.utils.errors import UserError

FEATURES, MAPS = 1e-5, 1e-4  # tolerances; MAPS follows a softmax with a small temperature
SIZE = 84
GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
TEXTS = {"normal": "a photo of a good", "abnormal": "a photo of a damaged"}
PLACEHOLDER, END = 49408, 49407  # ids in the golden


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("vcpclip", "vcpclip_tiny")


@pytest.fixture(scope="module")
def clip(golden, tmp_path_factory):
    """Returns the golden's CLIP, whose tokenizer knows its sentences without the class."""
    with np.load(GOLDENS / "tiny_clip_zsad" / "weights.npz") as arrays:
        weights = dict(arrays) | without(golden, "clip_override/")
    path = tmp_path_factory.mktemp("vcpclip") / "weights.npz"
    np.savez(path, **weights)
    loaded = load_backbone("clip", weights=path, num_heads=4, text_num_heads=3, image_size=SIZE)
    known = {"": [END - 1, END]}
    for state, text in TEXTS.items():
        (ids,) = golden[f"in/token_ids_{state}"]
        known[text] = [*ids[(ids != 0) & (ids != PLACEHOLDER)]]

    def tokenize(texts):
        rows = [known[text] for text in texts]
        ids = np.stack([np.pad(row, (0, 77 - len(row))) for row in rows])
        return ids, np.int32(ids == 0)

    own = loaded.in_form("open_clip")
    text = dataclasses.replace(own.text, tokenize=tokenize)
    return dataclasses.replace(own, text=text, forms={})


@pytest.fixture(scope="module")
def method(clip):
    return make_method("vcpclip", clip, {"normalize": "none"})


@pytest.fixture(scope="module")
def params(method, golden):
    return jax.tree.map(jnp.asarray, method.import_params(authors_names(golden, "param/")))


@pytest.fixture(scope="module")
def features(method, clip, golden):
    images = np.moveaxis(golden["in/images"], 1, -1)
    return jax.jit(method.features)(clip.params, {}, images)


@pytest.fixture(scope="module")
def batch(golden):
    return Batch(
        category=np.zeros(2, int),
        labels=np.array([1, 1]),
        masks=golden["in/masks"][:, 0],
        has_mask=np.ones(2, bool),
        valid=np.ones(2, bool),
        class_names=("object",),
    )


@pytest.fixture(scope="module")
def score(method, clip, params, features):
    """Returns a function that scores the golden's images, given other parameters or features."""
    texts = method.prototypes(clip.params, params, ("object",))
    run = jax.jit(method.score, static_argnames="extras")
    extras = ("text_features", "layer_text_features", "attention")
    zeros = np.zeros(2, int)
    return lambda p=params, x=features: run(clip.params, p, texts, x, zeros, extras=extras)


def without(arrays, prefix):
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}


def authors_names(golden, prefix):
    """Returns arrays under the names in the authors' checkpoints."""
    modules = {
        "clip": "", "linear": "trainable_linearlayer.", "prevcp": "New_Lan_Embed.", "postvcp": "Zero_try.",
    }  # fmt: skip
    parts = {name.partition("."): x for name, x in without(golden, prefix).items()}
    return {modules[module] + name: x for (module, _, name), x in parts.items()}


def test_features_match_golden(features, golden, assert_near):
    assert_near(features.global_tokens[:, 0], golden["out/image_features_raw"], FEATURES)
    for i in range(4):
        expected = golden[f"out/patch_tokens_{i}"][:, 1:]
        assert_near(features.patches[:, i].reshape(expected.shape), expected, FEATURES)


def test_texts_match_golden(score, golden, assert_near):
    extras = score().extras
    assert_near(extras["text_features"], golden["out/text_embeddings"], FEATURES)
    for i in range(4):
        assert_near(extras["layer_text_features"][:, i], golden[f"out/post_text_{i}"], FEATURES)


def test_scores_and_maps_match_golden(method, clip, score, golden, assert_near):
    found = score()
    assert_near(found.image["patch"], golden["out/image_score_before_minmax"], MAPS)
    expected = golden["out/map_fused_smoothed_before_minmax"]
    assert_near(method.anomaly_map(found.patches, SIZE), expected, MAPS)
    for name, alpha in (("raw", 1.0), ("new", 0.0)):
        options = {"normalize": "none", "sigma": 0.0, "alpha": alpha}
        other = make_method("vcpclip", clip, options).anomaly_map(found.patches, SIZE)
        assert_near(other, golden[f"out/map_{name}"], MAPS)


def test_loss_and_gradient_match_golden(
    method, clip, params, features, batch, golden, assert_near, largest_entries
):
    step = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    (loss, terms), gradient = step(clip.params, params, features, batch)
    assert_near(loss, golden["out/loss_new"] + golden["out/loss_base"], FEATURES)
    assert loss == pytest.approx(float(terms["focal"] + terms["dice_abnormal"]))
    expected = method.import_params(authors_names(golden, "grad/"))
    effective = largest_entries("vcpclip", expected)
    whole = max(effective.values())
    for (path, found), value in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(expected), strict=True
    ):
        scale = effective.get(jax.tree_util.keystr(path), whole)
        assert_near(found, value, 1e-4, scale=scale)


def test_padding_rows_change_nothing(method, clip, params, features, batch):
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), (features, batch))
    of_loss = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    (expected, _), expected_gradient = of_loss(clip.params, params, features, batch)
    (found, _), gradient = of_loss(clip.params, params, *padded)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_category_is_scaled_and_single_images_are_not(method, clip, params, features, score):
    scaled = make_method("vcpclip", clip)
    texts = scaled.prototypes(clip.params, params, ("object",))
    plain, alone = score(), scaled.score(clip.params, params, texts, features, np.zeros(2, int))
    np.testing.assert_allclose(alone.image["patch"], plain.image["patch"], atol=1e-6)
    np.testing.assert_allclose(
        scaled.anomaly_map(alone.patches, SIZE), method.anomaly_map(plain.patches, SIZE), atol=1e-6
    )
    blocks = [(features, np.ones(2, bool))]
    together = scaled.across(clip.params, params, texts, lambda: blocks, 0)
    maps = scaled.anomaly_map(together.patches, SIZE)
    assert (float(maps.min()), float(maps.max())) == pytest.approx((0, 1), abs=1e-5)
    assert sorted(together.image["patch"]) == [0, 1]


def test_sees_the_image_only_with_pre_vcp(clip, features, batch):
    other = features._replace(global_tokens=features.global_tokens[::-1])
    for pre_vcp in (True, False):
        method = make_method("vcpclip", clip, {"pre_vcp": pre_vcp, "post_vcp": False})
        params = method.init(jax.random.key(0), clip.params)
        of_loss = jax.jit(method.loss)
        losses = [of_loss(clip.params, params, one, batch)[0] for one in (features, other)]
        assert (losses[0] != losses[1]) == pre_vcp


@pytest.mark.parametrize(
    ("text", "before"),
    [("{}", 0), ("a photo of a {}", 4), ("a {} photo", 1)],
)
def test_class_tokens_take_the_place_in_the_sentence(text, before):
    """Compares with the rows that the text tower receives."""
    backbone, received = load_backbone("clip-nano", image_size=56), []

    def encode(params, rows, paddings, *deep, **options):
        received.append(np.asarray(rows[0]))
        return jnp.ones((2, backbone.embed_dim))

    text_side = dataclasses.replace(backbone.text, encode_prompts=encode)
    spy = dataclasses.replace(backbone, text=text_side, forms={})
    method = make_method("vcpclip", spy, {"normal_text": text})
    params = method.init(jax.random.key(0), spy.params)
    method.prototypes(spy.params, params, ("object",))
    rows = received[0]
    np.testing.assert_array_equal(rows[1 + before :][:2], params["query"])
    (words,), _ = spy.tokenize([text.replace("{}", "")])
    kept = np.concatenate([rows[: 1 + before], rows[3 + before :]])
    expected = spy.embed_tokens(spy.params, words[None])[0]
    np.testing.assert_array_equal(kept, expected[: len(kept)])


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, 7_687_946),
        ({"pre_vcp": False}, 7_687_946 - 8),
        ({"post_vcp": False}, 7_687_946 - 3_936_257),
        ({"num_deep_prompts": 0}, 7_687_946 - 601_344),
    ],
)
def test_counts_parameters_as_published(config, count):
    assert count_parameters("vcpclip", backbone="clip-vit-l14-336", config=config) == count


def test_initial_parameters_have_the_published_ranges(clip):
    method = make_method("vcpclip", clip)
    params = method.init(jax.random.key(0), clip.params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        lambda x: x.shape, param_shapes(method, clip)
    )
    assert np.abs(params["query"]).max() <= 2
    assert np.abs(params["deep"]["tokens"]).max() <= 1
    assert float(params["log_scales"]["raw"]) == pytest.approx(np.log(1 / 0.07))
    kernel = params["deep"]["projection"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / 48) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"normal_text": "flawless"}, "'normal_text' is 'flawless'. Expected text with one {}"),
        ({"abnormal_text": "{} {}"}, "'abnormal_text' is '{} {}'"),
        ({"post_vcp_heads": 5}, "'post_vcp_heads' is 5, which does not divide the 64"),
    ],
)
def test_rejects_options(clip, config, words):
    with pytest.raises(UserError, match=words):
        make_method("vcpclip", clip, config)


def test_rejects_backbone_with_other_widths(load_golden_clip):
    clip = load_golden_clip("tiny_clip_zsad", text_num_heads=3)
    with pytest.raises(UserError, match="have 32 and 48 numbers"):
        make_method("vcpclip", clip)


def test_changes_training_images(clip):
    (stage,) = make_method("vcpclip", clip).stages
    assert (stage.mosaic, stage.mosaic_of) == (0.2, "anomalous")
    image, mask = jnp.full((9, 9, 3), 0.5), jnp.ones((9, 9))
    changed, _ = jax.vmap(stage.augment, (0, None, None))(
        jax.random.split(jax.random.key(0), 8), image, mask
    )
    assert len(np.unique(changed[:, 0, 0, 0])) > 4
    (stage,) = make_method("vcpclip", clip, {"augment": 0.0, "mosaic_of": "all"}).stages
    assert (stage.augment, stage.mosaic_of) == (None, "all")
    with pytest.raises(UserError, match=r"'augment' is -1\. It must be between 0 and 1"):
        make_method("vcpclip", clip, {"augment": -1})
