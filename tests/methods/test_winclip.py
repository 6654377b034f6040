"""Tests of WinCLIP against golden values and loops over windows, and of its properties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zsad_jax
from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.methods import make_method
from zsad_jax.methods.winclip import window_map
from zsad_jax.utils.errors import UserError

TAU = 0.07
EXTRAS = ("text_features", "scales")


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("winclip", "winclip_tiny")


@pytest.fixture(scope="module")
def backbone(golden, read_golden, tmp_path_factory):
    """Returns the golden's CLIP, with its resized positions, and a tokenizer of its sentences in order."""
    arrays = dict(read_golden("tiny_clip_zsad", "weights"))
    arrays["visual.positional_embedding"] = golden["out/visual_positional_embedding_resized"]
    path = tmp_path_factory.mktemp("winclip") / "weights.npz"
    np.savez(path, **arrays)
    options = {"num_heads": 4, "text_num_heads": 3, "activation": "gelu"}
    model = zsad_jax.load_backbone("clip", weights=path, **options)
    states = ("normal", "abnormal")
    rows = np.concatenate([golden[f"in/token_ids_{state}_obj0"] for state in states])
    family = make_method("winclip", model).config
    filled = [
        template.format(state.format("bottle"))
        for state in (*family.normal_states, *family.abnormal_states)
        for template in family.templates
    ]
    known = dict(zip(filled, rows, strict=True))

    def tokenize(texts):
        ids = np.stack([known[text] for text in texts])
        return ids, np.int32(ids == 0)

    return dataclasses.replace(model, text=dataclasses.replace(model.text, tokenize=tokenize))


@pytest.fixture(scope="module")
def encode(backbone):
    """Returns the features of a golden's images [n, 3, H, W]."""
    method = make_method("winclip", backbone)
    features = jax.jit(method.features)
    return lambda images: features(backbone.params, {}, images.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def features(golden, encode):
    return encode(golden["in/images"])


def score_golden(golden, features, references=None):
    """Returns the scores of the golden's features with its texts, and the method."""
    described = describe_backbone("clip-vit-b16-plus-240")
    method = make_method("winclip", described)
    text = [golden[f"out/text_mean_{state}"][:, 0] for state in ("normal", "abnormal")]
    prototypes = {"text": np.stack(text, axis=1), **(references or {})}
    score = jax.jit(lambda *args: method.score(*args, extras=EXTRAS))
    return method, score({}, {}, prototypes, features, golden["in/class_index"])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_text_matches_golden(backbone, golden, assert_near):
    method = make_method("winclip", backbone)
    found = method.prototypes(backbone.params, {}, ("bottle",))["text"]
    expected = [golden[f"out/text_mean_{state}"][0, 0] for state in ("normal", "abnormal")]
    assert_near(found[0], unit(np.stack(expected)), 1e-5)


def test_features_match_golden(features, golden, assert_near):
    assert_near(features.global_tokens[:, 0], golden["out/class_tokens"], 1e-5)
    for found, size in zip(features.windows, ("mid", "large"), strict=True):
        expected = golden[f"out/window_tokens_{size}"]
        assert_near(found.reshape(expected.shape), expected, 1e-5)
    expected = golden["out/patch_tokens"]
    assert_near(features.patches.reshape(expected.shape), expected, 1e-5)


def test_scores_and_maps_match_golden(features, golden, assert_near):
    method, found = score_golden(golden, features)
    assert_near(found.image["global"], golden["out/image_score"], 1e-4)
    for index, size in enumerate(("mid", "large")):
        assert_near(found.extras["scales"][:, index], golden[f"out/harmonic_{size}"], 1e-4)
    assert_near(found.patches[..., 0], golden["out/map_grid"], 1e-4)
    assert_near(method.anomaly_map(found.patches, 84), golden["out/map"], 1e-4)


def test_distances_to_references_match_golden(encode, features, golden, backbone, assert_near):
    references = encode(golden["in/reference_images"])
    both = jax.tree.map(lambda x: np.stack([x, x]), references)
    banks = make_method("winclip", backbone).prototypes(backbone.params, {}, ("bottle",), both)
    _, zero_shot = score_golden(golden, features)
    _, found = score_golden(golden, features, {"banks": banks["banks"]})
    expected = golden["out/impl2_fewshot_map_grid"]
    assert_near(2 * found.patches[..., 0] - zero_shot.patches[..., 0], expected, 1e-4)
    image = 2 * found.image["global"] - zero_shot.image["global"]
    assert_near(image, expected.max(axis=(1, 2)), 1e-4)


def brute_average(scores, size):
    """Returns the harmonic mean of the scores of the windows over each patch, by loops in float64."""
    b, rows, columns = scores.shape
    means = np.zeros((b, rows + size - 1, columns + size - 1))
    for i, y, x in np.ndindex(means.shape):
        inside = [
            scores[i, top, left]
            for top, left in np.ndindex(rows, columns)
            if top <= y < top + size and left <= x < left + size
        ]
        means[i, y, x] = len(inside) / sum(1 / np.float64(one) for one in inside)
    return means


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(1, 1), (3, 4), (5, 2)]), st.sampled_from([1, 2, 3]), st.integers(0, 1000))
def test_harmonic_means_equal_loops(shape, size, seed):
    scores = np.float32(np.random.default_rng(seed).uniform(1e-4, 1, (2, *shape)))
    found = window_map(scores, size)
    np.testing.assert_allclose(found, brute_average(scores, size), atol=1e-6)


def test_score_of_zero_gives_mean_of_zero():
    scores = np.full((1, 3, 3), 0.5, np.float32)
    scores[0, 0, 0] = 0
    found = window_map(jnp.asarray(scores), 2)
    np.testing.assert_allclose(found[0, :2, :2], 0)
    np.testing.assert_allclose(found[0, 2:], 0.5, atol=1e-7)


def brute_scores(features, text, references=None):
    """Returns image scores and maps by loops over images, in float64; each has its texts and references."""
    images, maps = [], []
    for i, pair in enumerate(unit(np.float64(text))):
        windows = [one[i, ..., 0, :] for one in features.windows]
        image, *scales = (
            1 / (1 + np.exp((x @ pair[0] - x @ pair[1]) / TAU))
            for x in (unit(np.float64(x)) for x in (features.global_tokens[i, 0], *windows))
        )
        scales = [brute_average(x[None], size)[0] for size, x in zip((2, 3), scales, strict=True)]
        zero_shot = 3 / (sum(1 / x for x in scales) + 1 / image)
        if references is not None:
            others = [references.patches[i, :, 0], *(x[i, ..., 0, :] for x in references.windows)]
            found = []
            for size, own, bank in zip(
                (1, 2, 3), (features.patches[i, 0], *windows), others, strict=True
            ):
                bank = unit(np.float64(bank)).reshape(-1, bank.shape[-1])
                nearest = (1 - (unit(np.float64(own)) @ bank.T).max(axis=-1)) / 2
                found.append(brute_average(nearest[None], size)[0])
            few_shot = np.mean(found, axis=0)
            zero_shot, image = (zero_shot + few_shot) / 2, (image + few_shot.max()) / 2
        images.append(image)
        maps.append(zero_shot)
    return np.array(images), np.array(maps)


def draw(seed, *leading, grid=(4, 5), width=6):
    h, w = grid
    rng = np.random.default_rng(seed)
    shapes = [(1, width), (1, h, w, width), *((h - k + 1, w - k + 1, 1, width) for k in (2, 3))]
    found, patches, *windows = (rng.normal(size=(*leading, *shape)) for shape in shapes)
    return jax.tree.map(np.float32, VisionFeatures(found, patches, tuple(windows)))


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([None, 1, 3]), st.integers(0, 1000))
def test_scores_equal_loops(shots, seed):
    method = make_method("winclip", describe_backbone("clip-vit-b16-plus-240"))
    features, category = draw(seed, 4), np.array([1, 0, 1, 1])
    text = np.random.default_rng(seed).normal(size=(2, 2, 6)).astype(np.float32)
    references = None if shots is None else draw(seed + 1, 2, shots)
    prototypes = {"text": text}
    if shots:
        sizes = [references.patches[:, :, 0], *(x[..., 0, :] for x in references.windows)]
        prototypes["banks"] = [unit(x).reshape(2, -1, x[0, 0, ..., 0].size, 6) for x in sizes]
    found = jax.jit(method.score)({}, {}, prototypes, features, category)
    own = jax.tree.map(lambda x: x[category], (text, references))
    image, maps = brute_scores(features, *own)
    np.testing.assert_allclose(found.image["global"], image, atol=1e-5)
    np.testing.assert_allclose(found.patches[..., 0], maps, atol=1e-5)


def test_single_scale_has_image_score_only_on_request():
    features, category = draw(0, 2), np.zeros(2, int)
    options = {"windows": (2,), "full_image": False}
    method = make_method("winclip", describe_backbone("clip-vit-b16-plus-240"), options)
    prototypes = {"text": np.random.default_rng(0).normal(size=(1, 2, 6))}
    one = features._replace(windows=features.windows[:1])
    found = method.score({}, {}, prototypes, one, category, extras=("scales",))
    np.testing.assert_allclose(found.patches[..., 0], found.extras["scales"][:, 0], rtol=1e-6)


@pytest.mark.parametrize("token", [0, 1])
def test_scores_each_class_token_of_tips(token):
    """Compares with the other token removed; references are the images in reverse order."""
    backbone = zsad_jax.load_backbone("tips-nano", image_size=56)
    images = np.random.default_rng(0).uniform(size=(2, 56, 56, 3)).astype(np.float32)
    found = []
    for options in ({"global_token": token}, {}):
        method = make_method("winclip", backbone, options)
        features = method.features(backbone.params, {}, images)
        if not options:
            windows = tuple(x[..., [token], :] for x in features.windows)
            features = features._replace(
                global_tokens=features.global_tokens[:, [token]], windows=windows
            )
        references = jax.tree.map(lambda x: x[None, ::-1][:, :1], features)
        prototypes = method.prototypes(backbone.params, {}, ("plate",), references)
        found.append(method.score(backbone.params, {}, prototypes, features, np.zeros(2, int)))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert found[0].patches.shape == (2, 4, 4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": ()}, r"'windows' is \(\). Expected at least one size between 1 and 15"),
        ({"windows": (2, 16)}, "between 1 and 15: images of 240 pixels have 15 x 15 patches"),
        ({"normal_states": ()}, r"'normal_states' is \(\). Expected text with {}"),
        ({"templates": ("a photo",)}, "'templates' is .* Expected text with {}"),
    ],
)
def test_rejects_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        make_method("winclip", describe_backbone("clip-vit-b16-plus-240"), options)
