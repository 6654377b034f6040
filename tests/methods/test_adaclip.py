"""Tests of AdaCLIP against the published code on a tiny CLIP, whose four variants share their parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.methods import Batch, adaclip, make_method
from zsad_jax.methods.shared.clusters import kmeans
from zsad_jax.methods.shared.similarity import normalize
from zsad_jax.utils.errors import UserError

FEATURES, MAPS = 1e-5, 1e-4  # tolerances; MAPS follows a softmax with a small temperature
# Token ids of the words of the sentences.
WORDS = {
    **{"a": [320], "the": [518], "photo": [1125], "of": [539], "with": [593], ".": [269]},
    **{"bad": [2103], "low": [1042], "resolution": [9977], "cropped": [31139], "without": [2193]},
    **{"flawless": [15531], "perfect": [1878], "unblemished": [569, 1447, 714, 1492]},
    **{"damaged": [13568], "broken": [5107], "flaw": [34978], "defect": [44013], "damage": [6822]},
    **{"metal": [4044], "nut": [6491], "bottle": [5392]},
}
SIZES = {"num_prompts": 3, "prompt_depth": 3, "sigma": 0.0, "dice_rows": True}
VARIANTS = {
    "SD_VL_hsf": {"clusters": 4},
    "SD_VL_nohsf": {"hsf": "none"},
    "S_L_nohsf": {"hsf": "none", "prompt_type": "S", "prompt_branch": "L"},
    "D_V_nohsf": {"hsf": "none", "prompt_type": "D", "prompt_branch": "V"},
}


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("adaclip", "adaclip_tiny")


@pytest.fixture(scope="module")
def clip(load_golden_clip, with_words):
    loaded = load_golden_clip("tiny_clip_zsad", text_num_heads=3)
    return with_words(loaded.in_form("adaclip"), WORDS)


@pytest.fixture(scope="module")
def images(golden):
    return np.moveaxis(golden["in/images"], 1, -1)


@pytest.fixture(scope="module")
def prepare(clip, golden, images):
    """Returns a variant's method, parameters and features of the image."""

    @functools.cache
    def prepare(variant):
        method = make_method("adaclip", clip, SIZES | VARIANTS[variant])
        params = read_params(method, golden, "param/")
        return method, params, jax.jit(method.features)(clip.params, params, images)

    return prepare


@pytest.fixture
def batch(golden):
    return Batch(
        category=np.array([0]),
        labels=np.array([1]),
        masks=golden["in/masks"][:, 0],
        has_mask=np.ones(1, bool),
        valid=np.ones(1, bool),
        class_names=("metal-nut",),
    )


@pytest.fixture
def given_clusters(monkeypatch, golden):
    """Takes the clusters of the golden, which depend on the library."""
    labels = jnp.asarray(golden["SD_VL_hsf/kmeans_labels"])
    monkeypatch.setattr(adaclip, "kmeans", lambda points, count, steps: labels)


def read_params(method, golden, prefix):
    found = {f"clip_model.{k.removeprefix(prefix)}": x for k, x in golden.items() if prefix in k}
    return jax.tree.map(jnp.asarray, method.import_params(found))


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_maps_match_golden(prepare, clip, golden, given_clusters, assert_near, variant):
    method, params, features = prepare(variant)
    texts = method.prototypes(clip.params, params, ("bottle", "metal-nut"))
    score = jax.jit(functools.partial(method.score, extras=("text_features",)))
    found = score(clip.params, params, texts, features, np.array([1]))
    text = np.moveaxis(found.extras["text_features"], 1, 2)
    assert_near(text, golden[f"{variant}/text_features"], FEATURES)
    assert_near(found.image["global"], golden[f"{variant}/anomaly_score"], MAPS)
    assert_near(method.anomaly_map(found.patches, 84), golden[f"{variant}/anomaly_map"], MAPS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_projected_features_match_golden(prepare, golden, assert_near, variant):
    _, params, features = prepare(variant)

    def project(layer, x):
        return normalize(x @ layer["kernel"] + layer["bias"])

    token = project(params["token"], features.global_tokens[:, 0])
    assert_near(token, golden[f"{variant}/proj_cls"], FEATURES)
    for i in range(4):
        layer = jax.tree.map(lambda x: x[i], params["patches"])  # noqa: B023 - called at once
        patches = features.patches[:, i].reshape(1, 36, -1)
        assert_near(project(layer, patches), golden[f"{variant}/proj_patch_{i}"], FEATURES)


def test_smoothed_map_matches_golden(prepare, clip, golden, given_clusters, assert_near):
    method, params, features = prepare("SD_VL_hsf")
    smooth = make_method("adaclip", clip).anomaly_map
    texts = method.prototypes(clip.params, params, ("metal-nut",))
    patches = jax.jit(method.score)(clip.params, params, texts, features, np.array([0])).patches
    assert_near(smooth(patches, 84)[0], golden["SD_VL_hsf/anomaly_map_smoothed"], MAPS)


@pytest.mark.parametrize("variant", ["SD_VL_hsf", "SD_VL_nohsf"])
def test_losses_match_golden(prepare, clip, golden, batch, given_clusters, assert_near, variant):
    method, params, features = prepare(variant)
    loss, terms = jax.jit(method.loss)(clip.params, params, features, batch)
    assert_near(loss, golden[f"{variant}/loss"], FEATURES)
    assert_near(terms["image_focal"], golden[f"{variant}/loss_cls"], FEATURES)
    found = [terms[name] for name in ("focal", "dice_abnormal", "dice_normal")]
    summed = golden[f"{variant}/loss_seg_terms_focal_dabn_dnorm"].sum(axis=0)
    assert_near(np.array(found), summed, FEATURES)
    of_images = make_method("adaclip", clip, SIZES | VARIANTS[variant] | {"dice_rows": False})
    _, terms = jax.jit(of_images.loss)(clip.params, params, features, batch)
    dice = terms["dice_abnormal"] + terms["dice_normal"]
    assert_near(dice, golden[f"{variant}/dice_sum_with_batch_axis"], FEATURES)


def test_gradient_matches_golden(prepare, clip, golden, images, batch, assert_near):
    """Includes the gradient through the towers. That of the first static text tokens, which we lack, is 0."""
    method, params, _ = prepare("SD_VL_nohsf")

    @jax.jit
    def differentiate(frozen, params):
        def loss(params):
            features = method.features(frozen, params, images)
            return method.loss(frozen, params, features, batch)[0]

        return jax.grad(loss)(params)

    expected = read_params(method, golden, "grad/")
    found = differentiate(clip.params, params)
    jax.tree.map(lambda one, other: assert_near(one, other, 1e-4), found, expected)
    assert not golden["grad/text_prompter.static_prompts.0"].any()


def test_padding_rows_change_nothing(prepare, clip, batch):
    _, params, features = prepare("SD_VL_hsf")
    method = make_method(
        "adaclip", clip, SIZES | {"clusters": 4}
    )  # compiled without the golden's clusters
    loss = jax.jit(method.loss)
    expected, _ = loss(clip.params, params, features, batch)
    rows = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), (features, batch))
    found, _ = loss(clip.params, params, *rows)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    gradient = jax.jit(jax.grad(lambda p: method.loss(clip.params, p, *rows)[0]))(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_images_have_texts_of_their_own(prepare, clip):
    """Images of a batch have the scores that each has alone."""
    method, params, features = prepare("SD_VL_hsf")
    other = jax.tree.map(lambda x: x[:, ::-1] if x.ndim == 5 else 2 * x, features)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), features, other)
    texts = method.prototypes(clip.params, params, ("bottle", "metal nut"))
    score = jax.jit(functools.partial(method.score, extras=("text_features",)))
    found = score(clip.params, params, texts, both, np.array([0, 1]))
    for i, one in enumerate((features, other)):
        alone = score(clip.params, params, texts, one, np.array([i]))
        assert jnp.abs(found.image["global"][i] - alone.image["global"][0]) < 1e-6
    assert jnp.abs(jnp.diff(found.extras["text_features"], axis=0)).max() > 1e-3


@pytest.mark.parametrize(
    ("branch", "kind", "parts"),
    [("L", "SD", {"text"}), ("V", "S", {"visual"}), ("VL", "", set()), ("", "SD", set())],
)
def test_branches_have_only_their_tokens(clip, branch, kind, parts):
    method = make_method("adaclip", clip, {"prompt_branch": branch, "prompt_type": kind})
    params = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    assert set(params) - {"patches", "token"} == parts
    assert method.cacheable == ("visual" not in parts)


def test_mean_is_that_of_the_most_anomalous_patches():
    rng = np.random.default_rng(0)
    patches = np.float32(rng.normal(size=(2, 3, 4, 8)))
    margins = np.float32(rng.normal(size=(3, 4, 2)))
    config = adaclip.AdaCLIPConfig(hsf="mean", clusters=1)
    found = adaclip.fuse(config, patches, margins)
    strongest = np.argsort(-margins.mean(axis=-1).ravel())[:5]
    expected = patches.reshape(2, 12, 8)[:, strongest].mean(axis=(0, 1))
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_fuses_fewer_patches_than_clusters():
    """Equal patches leave clusters empty."""
    patches, margins = jnp.ones((2, 2, 2, 8)), jnp.zeros((2, 2, 2))
    found = adaclip.fuse(adaclip.AdaCLIPConfig(), patches, margins)
    np.testing.assert_allclose(found, 8**-0.5, atol=1e-6)


def test_kmeans_finds_separate_clusters():
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(4), 5))
    points = 10 * np.eye(4, 16)[truth] + rng.normal(size=(20, 16)) / 10
    labels = np.asarray(jax.jit(kmeans, static_argnums=1)(np.float32(points), 4, steps=5))
    assert len({*zip(labels, truth, strict=True)}) == len({*labels}) == 4


def test_kmeans_steps_move_centers_to_means():
    """Compares with Lloyd's algorithm over points, from the same start."""
    points = np.float32(np.random.default_rng(1).normal(size=(30, 3)))
    labels = np.asarray(kmeans(points, 4, steps=0))
    for steps in range(1, 6):
        centers = np.stack([points[labels == k].mean(axis=0) for k in range(4)])
        labels = np.square(points[:, None] - centers).sum(axis=-1).argmin(axis=1)
        np.testing.assert_array_equal(kmeans(points, 4, steps=steps), labels)


def test_rejects_more_tokens_than_words(clip):
    with pytest.raises(UserError, match=r"num_prompts.* is 7\. Expected at most 6"):
        make_method("adaclip", clip, {"num_prompts": 7})
    make_method("adaclip", clip, {"num_prompts": 7, "prompt_branch": "V"})


def test_scores_another_grid(prepare, clip):
    method, params, _ = prepare("SD_VL_hsf")
    rng = np.random.default_rng(0)
    tokens, patches = (np.float32(rng.normal(size=s)) for s in ((1, 2, 32), (1, 4, 3, 5, 64)))
    texts = method.prototypes(clip.params, params, ("metal nut",))
    features = VisionFeatures(tokens, patches)
    score = jax.jit(method.score)
    found = score(clip.params, params, texts, features, np.array([0]))
    assert found.patches.shape == (1, 3, 5, 1)
    assert jnp.isfinite(found.image["global"]).all()


def test_tower_follows_the_config(load_golden_clip):
    loaded = load_golden_clip("tiny_clip_zsad", text_num_heads=3)
    forms = [
        make_method("adaclip", loaded, {"tower": tower, "prompt_branch": "L"}).features_key[-1]
        for tower in ("adaclip", "open_clip", "openai")
    ]
    assert forms == ["adaclip", "open_clip", "openai"]
