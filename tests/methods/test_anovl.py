"""Tests of AnoVL: the golden has the published encoder, texts and scores without adapter and views.

The adapter is compared with a loop over images and steps, the views with loops over pixels.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsad_jax.backbones import tokenizers
from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.methods import make_method
from zsad_jax.methods.anovl import GRAY, VIEWS, AnoVLConfig, reword, view
from zsad_jax.utils.errors import UserError

MERGES = pathlib.Path(__file__).parents[3] / "shared/weights/tokenizers" / tokenizers.CLIP_MERGES
PLAIN = {"adapter_steps": 0, "views": False}
EXTRAS = ("patch_scores", "views")


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("anovl", "anovl_tiny")


@pytest.fixture(scope="module")
def clip(load_golden_clip):
    return load_golden_clip("tiny_clip_zsad", text_num_heads=3)


@pytest.fixture(scope="module")
def method(clip):
    """Returns the part without adapter and views; value-value attention is that of the last 5 of 8 blocks."""
    return make_method("anovl", clip, {"vv_from": 12, **PLAIN})


@pytest.fixture(scope="module")
def features(method, clip, golden):
    return jax.jit(method.features)(clip.params, {}, golden["in/images"].transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def scores(method, golden, features):
    """Returns the scores of both images as ones of the first class."""
    text = golden["out/text_features_0"].T[None]
    score = jax.jit(lambda *args: method.score(*args, extras=EXTRAS))
    return score({}, {}, {"text": text}, features, np.zeros(2, int))


def with_tokenizer(clip, tokenize):
    return dataclasses.replace(
        clip, text=dataclasses.replace(clip.text, tokenize=tokenize), forms={}
    )


def test_texts_of_texture_match_golden(clip, golden, assert_near):
    """Compares with the published token ids, whose order is templates outside, states inside."""
    config, known = AnoVLConfig(), {}
    templates = reword(config.templates, "industrial image", "textural photo")
    templates = reword(templates, "manufacturing image", "surface picture")
    for name, states in (("normal", config.normal_states), ("abnormal", config.abnormal_states)):
        filled = [t.format(s.format("carpet")) for t in templates for s in states]
        known |= dict(zip(filled, golden[f"in/token_ids_obj0_{name}"], strict=True))
    assert len(known) == 924

    def tokenize(texts):
        ids = np.stack([known[text] for text in texts])
        return ids, np.int32(ids == 0)

    found = make_method("anovl", with_tokenizer(clip.in_form("open_clip"), tokenize))
    prototypes = found.prototypes(clip.params, {}, ("carpet",))
    assert_near(prototypes["text"][0], golden["out/text_features_0"].T, 1e-5)
    assert prototypes["sentences"].shape == (1, 924, 32)


@pytest.mark.skipif(not MERGES.is_file(), reason="needs the published merge file")
def test_texts_of_object_match_golden(clip, golden, assert_near):
    """Puts back the underscore of the published class name, in place of which the library has a space."""

    def tokenize(texts):
        named = [text.replace("metal nut", "metal_nut") for text in texts]
        return tokenizers.tokenize_bpe(named, path=MERGES, length=77, vocabulary=49408)

    found = make_method("anovl", with_tokenizer(clip.in_form("open_clip"), tokenize), PLAIN)
    text = found.prototypes(clip.params, {}, ("metal_nut",))["text"]
    assert_near(text[0], golden["out/text_features_1"].T, 1e-5)


def test_features_match_golden(features, golden, assert_near):
    tokens = golden["out/image_tokens_projected"]
    assert_near(features.global_tokens[:, 0], tokens[:, 0], 1e-5)
    assert_near(features.patches[:, 0].reshape(2, 36, -1), tokens[:, 1:], 1e-5)


def test_scores_and_maps_match_golden(method, scores, golden, assert_near):
    assert_near(scores.image["global"], golden["out/cls_prob_abnormal"], 1e-4)
    assert_near(scores.extras["patch_scores"], golden["out/patch_prob"], 1e-4)
    assert_near(scores.patches[..., 0], golden["out/patch_prob_pooled"], 1e-4)
    assert_near(method.anomaly_map(scores.patches, 84), golden["out/map"], 1e-4)


# --- views -----------------------------------------------------------------------------------------------


def reflected(position, last):
    """Returns the position on 0 … last that a position beyond has, by reflection at the outermost pixels."""
    while not 0 <= position <= last:
        position = -position if position < 0 else 2 * last - position
    return position


def brute_view(image, positions):
    """Samples pixel by pixel, as `affine_grid` and `grid_sample` with aligned corners are defined."""
    last, found = len(image) - 1, np.zeros_like(image)
    for row, column in np.ndindex(image.shape[:2]):
        at = np.array([2 * column / last - 1, 2 * row / last - 1, 1])
        x, y = (reflected((value + 1) / 2 * last, last) for value in np.float64(positions) @ at)
        left, top = min(int(x), last - 1), min(int(y), last - 1)
        for i, j in np.ndindex(2, 2):
            share = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
            found[row, column] += share * image[top + i, left + j]
    return found


def test_views_equal_loops():
    images = np.random.default_rng(0).normal(size=(2, 7, 7, 3))
    found = jax.vmap(view, in_axes=(None, 0, 0))(np.float32(images), *VIEWS)
    for positions, gray, pair in zip(*VIEWS, found, strict=True):
        for image, one in zip(images, pair, strict=True):
            expected = brute_view(image, positions)
            if gray:
                expected = np.repeat((image @ GRAY)[..., None], 3, axis=-1)
            np.testing.assert_allclose(one, expected, atol=2e-5)


def test_views_are_those_of_the_published_code():
    """Finds the turned and mirrored images exactly, and angles and shifts in the maps."""
    image = np.float32(np.random.default_rng(0).normal(size=(6, 6, 3)))
    found = [view(image[None], *one)[0] for one in zip(*VIEWS, strict=True)]
    for expected in (*(np.rot90(image, k) for k in (1, 2, 3)), image[:, ::-1]):
        assert min(np.abs(one - expected).max() for one in found) == 0
    maps, gray = VIEWS
    assert (len(maps), gray.sum()) == (21, 1)
    angles = np.degrees(np.arctan2(maps[:8, 1, 0], maps[:8, 0, 0]))
    np.testing.assert_allclose(angles, [-45, -33.75, -22.5, -11.25, 11.25, 22.5, 33.75, 45], 1e-5)
    shifts = {(round(float(x), 3), round(float(y), 3)) for x, y in maps[:, :, 2] if x}
    assert shifts == {(x * s, y * s) for s in (0.1, 0.2) for x in (-1, 1) for y in (-1, 1)}


def test_image_score_is_mean_over_views(clip, golden, features):
    full = make_method("anovl", clip, {"vv_from": 12, "adapter_steps": 0})
    images = golden["in/images"].transpose(0, 2, 3, 1)
    found = jax.jit(full.features)(clip.params, {}, images)
    assert found.global_tokens.shape == (2, 22, 32)
    np.testing.assert_array_equal(found.patches, features.patches)
    np.testing.assert_array_equal(found.global_tokens[:, 0], features.global_tokens[:, 0])
    mirrored = clip.in_form("open_clip").encode_image(clip.params, images[:, :, ::-1])
    distance = np.abs(found.global_tokens - mirrored.global_tokens).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    text = np.random.default_rng(0).normal(size=(1, 2, 32))
    scores = full.score({}, {}, {"text": text}, found, np.zeros(2, int), extras=("views",))
    np.testing.assert_allclose(scores.image["global"], scores.extras["views"].mean(axis=1))
    assert scores.extras["views"].std(axis=1).min() > 0


# --- adapter ---------------------------------------------------------------------------------------------

GRID, WIDTH, SENTENCES = (3, 4), 6, 10


@pytest.fixture(scope="module")
def drawn():
    """Returns (texts and sentences of two classes, features of three images)."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return np.float32(rng.normal(size=shape))

    sentences = draw(2, SENTENCES, WIDTH)
    sentences /= np.linalg.norm(sentences, axis=-1, keepdims=True)
    text = {"text": draw(2, 2, WIDTH), "sentences": sentences}
    return text, VisionFeatures(draw(3, 22, WIDTH), draw(3, 1, *GRID, WIDTH))


def adapted_scores(drawn, category=(0, 1, 1), **options):
    method = make_method("anovl", describe_backbone("clip-vit-b16-plus-240"), options)
    text, features = drawn
    score = jax.jit(lambda *args: method.score({}, {}, *args, extras=("patch_scores",)))
    return np.asarray(score(text, features, np.array(category)).extras["patch_scores"])


def brute_scores(text, sentences, patches, *, steps, share=0.5):
    """Returns the scores of an image's patches [n, d], step by step as the published code is written."""

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def forward(weights, x):
        adapted = jnp.tanh(unit(x) @ weights["kernel"] + weights["bias"]) @ sentences
        return jax.nn.softmax(unit((1 - share) * x + share * adapted) @ unit(text).T)

    def loss_of(weights, clean, noisy):
        both = jnp.stack([forward(weights, clean), forward(weights, noisy)])
        soft = (-both[0] * jnp.log(both[0])).sum(axis=-1).mean()
        mask = jnp.array([0.0, 1.0])
        hard = -mask * jnp.log(both[1]) - (1 - mask) * jnp.log(both[0])
        return soft + 0.5 * hard.sum(axis=-1).mean()

    drawing, noise = jax.random.split(jax.random.key(0))
    kernel, bias = jax.random.split(drawing)
    bound = 1 / np.sqrt(WIDTH)
    weights = {
        "kernel": jax.random.uniform(kernel, (WIDTH, SENTENCES), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (SENTENCES,), minval=-bound, maxval=bound),
    }
    noisy = patches + 0.05 * 1.1 * jax.random.normal(noise, patches.shape)
    optimizer = optax.adamw(1e-3, weight_decay=0.01)
    state, losses = optimizer.init(weights), []
    for _ in range(steps):
        loss, gradients = jax.value_and_grad(loss_of)(weights, patches, noisy)
        updates, state = optimizer.update(gradients, state, weights)
        weights = optax.apply_updates(weights, updates)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    return forward(weights, patches)[:, 1]


def test_adapter_equals_loop(drawn):
    text, features = drawn
    found = adapted_scores(drawn)
    for index, category in enumerate((0, 1, 1)):
        own = text["text"][category], text["sentences"][category]
        patches = features.patches[index].reshape(-1, WIDTH)
        expected = brute_scores(*map(jnp.asarray, (*own, patches)), steps=5)
        np.testing.assert_allclose(found[index].ravel(), expected, atol=1e-6)


def test_each_step_of_the_adapter_counts(drawn):
    """Larger steps make the change visible beside rounding."""
    many = [{"adapter_steps": steps, "adapter_rate": 0.1} for steps in (1, 2)]
    found = [adapted_scores(drawn, **options) for options in ({"adapter_steps": 0}, *many)]
    assert np.abs(found[1] - found[2]).max() > 1e-3
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(adapted_scores(drawn, adapter_share=0.0), found[0], atol=1e-6)


def test_adapter_is_a_function_of_one_image(drawn):
    """Other images of the batch, and rows that fill it up, whose features are zero, change nothing."""
    text, features = drawn
    alone = [
        adapted_scores((text, jax.tree.map(lambda x, i=i: x[i : i + 1], features)), [c])
        for i, c in enumerate((0, 1, 1))
    ]
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:2])]), features)
    found = adapted_scores((text, padded), (0, 1, 1, 0, 0))
    np.testing.assert_allclose(found[:3], np.concatenate(alone), atol=1e-6)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, adapted_scores((text, padded), (0, 1, 1, 0, 0)))
    assert np.abs(adapted_scores(drawn, adapter_seed=1) - found[:3]).max() > 1e-5


# --- options ---------------------------------------------------------------------------------------------


def test_sentences_follow_the_kind_of_class(clip):
    """Counts distinct sentences: macaroni1 and macaroni2 share theirs; a third of all templates is shared."""
    seen = []

    def tokenize(texts):
        seen.extend(texts)
        return np.ones((len(texts), 4), np.int32), np.zeros((len(texts), 4), np.int32)

    method = make_method("anovl", with_tokenizer(clip, tokenize), PLAIN)
    names = ("macaroni1", "macaroni2", "wood")
    jax.eval_shape(lambda frozen: method.prototypes(frozen, {}, names), clip.params)
    assert len(seen) == len(set(seen)) == 2 * 924
    assert "an industrial photo of a small flawless macaroni" in seen
    assert "a close-up manufacturing image of the imperfect macaroni" in seen
    assert "a surface picture of a wood with flaw for anomaly detection" in seen
    assert not any("surface" in text and "macaroni" in text for text in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": 2}, "'pooling' is 2. Expected an odd number of patches"),
        ({"templates": ("a photo",)}, "'templates' is .* Expected text with {}"),
        ({"adapter_share": 1.5}, "'adapter_share' is 1.5"),
    ],
)
def test_rejects_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        make_method("anovl", describe_backbone("clip-vit-b16-plus-240"), options)
