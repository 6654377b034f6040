"""Tests of AA-CLIP against the published code on a tiny CLIP."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.methods import Batch, count_parameters, make_method
from zsad_jax.methods.base import encoder_of
from zsad_jax.methods.shared import prompt_files
from zsad_jax.utils.errors import UserError

FEATURES, MAPS = 1e-5, 1e-4  # tolerances; MAPS follows a softmax with a small temperature
CLASSES = ("dark bottle", "metal nut which has four notched edges")
# Token ids of the words of both descriptions and of the states.
WORDS = {
    **{"a": [320], "the": [518], "photo": [1125], "of": [539], "with": [593], ".": [269]},
    **{"damaged": [13568], "broken": [5107], "flaw": [34978], "defect": [44013], "damage": [6822]},
    **{"dark": [3144], "bottle": [5392], "metal": [4044], "nut": [6491], "which": [1448]},
    **{"has": [791], "four": [2721], "notched": [2534, 2146], "edges": [20938]},
}
# Of the golden's towers: 2 of 4 and 5 of 8 blocks, and value-value attention from block 4.
TINY = {"text_adapters": 6, "image_adapters": 15, "vv_from": 12, "vv_axis": "batch"}


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("aaclip", "aaclip_tiny")


@pytest.fixture(scope="module")
def clip(load_golden_clip, with_words):
    """Returns the golden's CLIP, with a tokenizer of the words above."""
    loaded = load_golden_clip("tiny_clip_zsad", text_num_heads=3).in_form("open_clip")
    loaded = with_words(loaded, WORDS)
    # The golden's images are normalized: those of a category pass unchanged.
    unit = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    preprocess = dataclasses.replace(loaded.preprocess, image_size=84, **unit)
    return dataclasses.replace(loaded, preprocess=preprocess)


@pytest.fixture(scope="module")
def method(clip):
    return make_method("aaclip", clip, TINY)


@pytest.fixture(scope="module")
def params(method, golden):
    return jax.tree.map(jnp.asarray, method.import_params(without(golden, "param/")))


@pytest.fixture(scope="module")
def images(golden):
    return np.moveaxis(golden["in/images"], 1, -1)


@pytest.fixture(scope="module")
def batch(golden):
    return Batch(
        category=golden["in/class_index"],
        labels=golden["in/labels"],
        masks=jnp.asarray(golden["in/masks"][:, 0]),
        has_mask=jnp.ones(2, bool),
        valid=jnp.ones(2, bool),
        class_names=CLASSES,
    )


def without(arrays, prefix):
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}


def gradient_matches(method, golden, stage, gradient, assert_near):
    """Compares the gradient of the parameters of a stage, whose golden has no others."""
    params = without(golden, "param/")
    zeros = {name: np.zeros_like(x) for name, x in params.items()}
    expected = method.import_params(zeros | without(golden, f"grad_stage{stage}/"))
    groups = method.groups(expected)
    for name, value in expected.items():
        if groups[name] == ("text", "vision")[stage - 1]:
            assert_near(gradient[name], value, MAPS)


def test_text_matches_golden(method, clip, params, golden, assert_near):
    found = method.prototypes(clip.params, params, CLASSES)
    expected = golden["stage1/text_features"].swapaxes(1, 2)
    assert_near(found[golden["in/class_index"]], expected, FEATURES)


@pytest.mark.parametrize(("layers", "first"), [("all", 0), ("last", 3)])
def test_first_stage_matches_golden(
    clip, params, images, batch, golden, assert_near, layers, first
):
    method = make_method("aaclip", clip, TINY | {"stage1_layers": layers})
    stage = method.stages[0]
    features = jax.jit(stage.features)(clip.params, {}, images)
    for i, found in enumerate(np.moveaxis(features, 1, 0)):
        expected = golden[f"stage1/patch_features_{first + i}"]
        assert_near(found.reshape(expected.shape), expected, FEATURES)
    step = jax.jit(jax.value_and_grad(stage.loss, argnums=1, has_aux=True))
    (loss, terms), gradient = step(clip.params, params, features, batch)
    apart = 0.1 * golden["stage1/orthogonal_term"]
    assert_near(terms["orthogonality"], apart, FEATURES, scale=float(loss))
    if layers == "all":  # the golden has this term in the loss of each layer
        assert_near(loss, golden["stage1/loss_per_layer"].sum() - 3 * apart, FEATURES)
        return
    assert_near(loss, golden["stage1/loss_used_last_layer"], FEATURES)
    gradient_matches(method, golden, 1, gradient, assert_near)


def test_second_stage_matches_golden(method, clip, params, images, batch, golden, assert_near):
    def of_images(frozen, params, batch):
        return method.loss(frozen, params, method.features(frozen, params, images), batch)

    text = method.stages[1].fixed(clip.params, params, CLASSES)
    batch = dataclasses.replace(batch, fixed=text)
    step = jax.jit(jax.value_and_grad(of_images, argnums=1, has_aux=True))
    (loss, terms), gradient = step(clip.params, params, batch)
    assert_near(loss, golden["stage2/loss"], FEATURES)
    assert_near(terms["cross_entropy"], golden["stage2/loss_ce"], FEATURES)
    gradient_matches(method, golden, 2, gradient, assert_near)


def test_scores_and_maps_match_golden(method, clip, params, images, golden, assert_near):
    text = golden["test/text_features_obj0"].T[None]
    features = jax.jit(method.features)(clip.params, params, images)
    found = jax.jit(method.score)(clip.params, params, text, features, np.zeros(2, int))
    assert_near(found.image["global"], golden["test/image_score_raw"], MAPS)
    assert_near(method.anomaly_map(found.patches, 84), golden["test/map"], MAPS)
    assert_near(found.image["map"], golden["test/map"].max(axis=(1, 2)), MAPS)
    for i in range(4):
        one = found.patches.at[..., :4].multiply(np.eye(4)[i])
        assert_near(method.anomaly_map(one, 84), golden[f"test/layer_map_{i}"], MAPS)


def test_scores_over_category_match_golden(method, clip, params, images, golden, assert_near):
    text = golden["test/text_features_obj0"].T[None]
    blocks = lambda: [(images, np.array([True, True]))]  # noqa: E731
    found = method.across(clip.params, params, text, blocks, 0)
    assert_near(found.image["fused"], golden["test/image_score_final_over_this_batch"], MAPS)
    maps = golden["test/map"]
    expected = (maps - maps.min()) / (maps.max() - maps.min())
    assert_near(method.anomaly_map(found.patches, 84), expected, MAPS)
    medical = make_method("aaclip", clip, TINY | {"domain": "medical"})
    found = medical.across(clip.params, params, text, blocks, 0)
    np.testing.assert_array_equal(found.image["fused"], found.image["map"])
    assert found.image["map"].max() == 1
    alone = make_method("aaclip", clip, TINY | {"normalize": "none"})
    assert alone.across is None


def test_padding_rows_change_nothing(clip, params, images, batch):
    method = make_method("aaclip", clip, TINY | {"vv_axis": "token"})
    batch = dataclasses.replace(batch, fixed=method.prototypes(clip.params, params, CLASSES))
    rows = dataclasses.replace(batch, valid=jnp.array([True, True, False]))
    for stage in method.stages:
        encode, loss = stage.features or method.features, stage.loss or method.loss
        features = encode(clip.params, params, images)
        expected, _ = loss(clip.params, params, features, batch)
        pad = lambda x: jnp.concatenate([x, jnp.ones_like(x[:1])])  # noqa: E731
        padded = {
            name: pad(getattr(batch, name)) for name in ("category", "labels", "masks", "has_mask")
        }
        found, _ = loss(
            clip.params,
            params,
            jax.tree.map(pad, features),
            dataclasses.replace(rows, **padded),
        )
        assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_reads_files_of_authors(method, clip, params, golden, tmp_path):
    np.savez(tmp_path / "both.npz", **without(golden, "param/"))
    file = prompt_files.find(str(tmp_path / "both.npz"))
    loaded = prompt_files.load(file, method, clip)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    ("part", "missing"), [("text_adapter", "image_adapter"), ("image_adapter", "text_adapter")]
)
def test_rejects_one_of_the_two_files(method, clip, golden, tmp_path, part, missing):
    arrays = without(golden, "param/")
    np.savez(tmp_path / "one.npz", **{k: x for k, x in arrays.items() if k.startswith(part)})
    file = prompt_files.find(str(tmp_path / "one.npz"))
    with pytest.raises(UserError, match=rf"The file has no {missing}\. Join text_adapter\.pth and"):
        prompt_files.load(file, method, clip)


def test_counts_parameters_as_published():
    assert count_parameters("aaclip", backbone="clip-vit-l14-336") == 12_582_912


def test_underscores_of_class_names_are_spaces(clip):
    seen = []

    def tokenize(texts):
        seen.extend(texts)
        return np.ones((len(texts), 3), np.int32), np.zeros((len(texts), 3), np.int32)

    spy = dataclasses.replace(clip, text=dataclasses.replace(clip.text, tokenize=tokenize))
    method = make_method("aaclip", spy)
    params = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    texts = functools.partial(method.prototypes, class_names=("pipe-shaped fryum", "round_plate"))
    jax.eval_shape(texts, clip.params, params)
    assert {"a photo of the pipe-shaped fryum.", "a photo of the round plate."} < set(seen)


def test_changes_images_as_published(clip):
    """Shows that what comes from outside of an image has the mean color, and colors apart from moves."""
    mean = (0.1, 0.2, 0.3)
    tower = dataclasses.replace(clip, preprocess=dataclasses.replace(clip.preprocess, mean=mean))
    image, mask = np.full((9, 9, 3), (0.5, 0.4, 0.6), np.float32), np.ones((9, 9), np.float32)
    keys = jax.random.split(jax.random.key(0), 32)

    def change(stage, **config):
        run = jax.vmap(make_method("aaclip", tower, config).stages[stage].augment, (0, None, None))
        return map(np.asarray, jax.jit(run)(keys, image, mask))

    for stage, config in ((1, {"augment": 1.0, "color": 0.0}), (0, {"text_augment": 1.0})):
        moved, masks = change(stage, **config)
        share = (moved - mean) / (image - np.array(mean, np.float32))
        np.testing.assert_allclose(share, share[..., :1].repeat(3, axis=-1), atol=1e-4)
        assert share.min() == pytest.approx(0, abs=1e-5)
        assert share.max() == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(masks[share[..., 0] < 1e-3], 0)
    colored, masks = change(1, augment=0.0, color=1.0)
    assert masks.all()
    np.testing.assert_array_equal(colored, colored[:, :1, :1].repeat(9, 1).repeat(9, 2))
    assert len(np.unique(colored[:, 0, 0], axis=0)) == 32


def test_stores_features_of_unchanged_images(clip):
    for config, stored in (
        ({}, True),
        ({"text_augment": 0.5}, False),
        ({"vv_axis": "batch"}, False),
    ):
        method = make_method("aaclip", clip, config)
        assert (encoder_of(method, method.stages[0])[1] is not None) == stored
    assert make_method("aaclip", clip, {"augment": 0.0, "color": 0.0}).stages[1].augment is None


@pytest.mark.parametrize("key", ["augment", "text_augment", "color"])
def test_rejects_probabilities_out_of_range(clip, key):
    with pytest.raises(UserError, match=f"'{key}' is 1.5. It must be between 0 and 1"):
        make_method("aaclip", clip, {key: 1.5})
