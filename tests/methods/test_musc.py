"""Tests of MuSc against golden values and loops over images, and of its properties."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.methods import musc as module
from zsad_jax.methods.musc import (
    average_windows,
    count_share,
    describe,
    distances,
    musc,
    mutual_scores,
    rescore,
)
from zsad_jax.utils.errors import UserError

TOLERANCE = 1e-5  # of the golden's README


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("musc", "musc_tiny")


@pytest.fixture(scope="module")
def facts(golden):
    return json.loads(str(golden["meta"]))


@pytest.fixture(scope="module")
def features(golden, facts):
    """Returns the golden's features, whose patch tokens have the class token in front."""
    grid = facts["grid"]
    layers = [golden[f"in/patch_tokens_{layer}"][:, 1:] for layer in range(facts["layers"])]
    patches = np.stack(layers, axis=1).reshape(facts["N"], facts["layers"], grid, grid, -1)
    return VisionFeatures(golden["in/class_tokens"][:, None], patches)


def in_blocks(images, rows):
    """Returns a function that yields blocks of images; the rows that fill the last one are the first image."""

    def blocks():
        count = len(jax.tree.leaves(images)[0])
        for start in range(0, count, rows):
            at = np.arange(start, start + rows)
            valid = at < count
            yield jax.tree.map(lambda x, at=at * valid: jnp.asarray(x[at]), images), valid

    return blocks


@pytest.fixture(scope="module")
def make(facts):
    """Makes MuSc over a backbone without weights, which has the golden's image size and number of layers."""
    described = describe_backbone("clip-vit-l14-336")
    size = dataclasses.replace(described.preprocess, image_size=facts["size"])
    backbone = dataclasses.replace(described, preprocess=size)
    return lambda **options: musc(backbone, {"feature_layers": (6, 12, 24), **options})


def expected_scores(patches, share, nearby=None):
    """Returns mutual scores of [n, h, w, d] by loops over pairs of images and over patches, in float64."""
    n, h, w, _ = patches.shape
    patches = patches.astype(np.float64)
    scores = np.zeros((n, h, w))
    for i, y, x in np.ndindex(n, h, w):
        found = []
        for j in range(n):
            if j != i:
                distance = np.linalg.norm(patches[j] - patches[i, y, x], axis=-1)
                if nearby is not None:
                    rows = slice(max(y - nearby, 0), y + nearby + 1)
                    distance = distance[rows, max(x - nearby, 0) : x + nearby + 1]
                found.append(distance.min())
        scores[i, y, x] = np.mean(sorted(found)[: max(math.ceil(share * (n - 1)), 1)])
    return scores


def test_windows_match_golden(golden, facts, features):
    for degree, layer in itertools.product(facts["r_list"], range(facts["layers"])):
        expected = golden[f"out/lnamd_r{degree}_raw"][:, :, layer]
        found = average_windows(features.patches[: len(expected), layer], degree)
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=TOLERANCE)


def all_scores(*given):
    return np.concatenate([*mutual_scores(*given)])


def test_mutual_scores_match_golden(golden, facts, features):
    for degree, layer in itertools.product(facts["r_list"], range(facts["layers"])):
        patches = describe(features.patches[:, layer], degree)
        found = all_scores(in_blocks(patches, 4), facts["topmin_max"])
        expected = golden[f"out/msm_r{degree}_l{layer}"]
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=TOLERANCE)


@pytest.mark.parametrize("neighbors", [(1, 2, 3), (1, 8, 9), ()])
def test_scores_and_maps_match_golden(golden, facts, features, make, neighbors):
    method = make(neighbors=neighbors)
    found = method.across({}, {}, None, in_blocks(features, 4), 0)
    expected = golden["out/patch_scores"]
    np.testing.assert_allclose(found.patches.reshape(expected.shape), expected, atol=TOLERANCE)
    maps = method.anomaly_map(found.patches, facts["size"])
    np.testing.assert_allclose(maps, golden["out/maps"][:, 0], atol=TOLERANCE)
    name = f"rscin_k{'_'.join(map(str, neighbors))}" if neighbors else "before"
    np.testing.assert_allclose(
        found.image["patch"], golden[f"out/image_scores_{name}"], atol=TOLERANCE
    )


def random_images(count, seed=0):
    """Returns unit-norm patches of a few images, all of one size, since others are compiled anew."""
    x = np.random.default_rng(seed).normal(size=(count, 3, 2, 5))
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


@settings(max_examples=25, deadline=None)
@given(
    patches=st.builds(random_images, st.integers(2, 7), st.integers(0, 2**16)),
    share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    nearby=st.sampled_from([None, 0, 1]),
    rows=st.sampled_from([1, 3]),
    per_pass=st.sampled_from([1, 4, 256]),
)
def test_mutual_scores_equal_loops(patches, share, nearby, rows, per_pass):
    """Compares sets from two images, in blocks and passes of several sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "IMAGES_PER_PASS", per_pass)
        found = all_scores(in_blocks(patches, rows), share, nearby)
    np.testing.assert_allclose(found, expected_scores(patches, share, nearby), rtol=0, atol=1e-6)


@pytest.mark.parametrize("nearby", [None, 1])
def test_distances_have_both_directions(nearby):
    x, y = random_images(3), random_images(3, seed=1)
    for one, other in zip(distances(x, y, nearby), distances(y, x, nearby)[::-1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_distances_do_not_depend_on_memory(monkeypatch):
    x, y = random_images(3), random_images(3, seed=1)
    expected = distances(x, y)
    monkeypatch.setattr(module, "MAX_COSINES", 72)  # of two images, the third is alone
    for one, other in zip(distances.__wrapped__(x, y), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.3, 1, 1), (0.3, 4, 2), (0.3, 10, 3), (0.07, 100, 7), (0.0, 9, 1), (1.0, 9, 9)],
)
def test_share_is_rounded_up(share, count, expected):
    assert count_share(share, count) == expected


def test_invalid_images_do_not_count():
    """They are neither scored nor compared with, wherever they are in a block."""
    patches, valid = random_images(9), np.arange(9) % 4 > 0
    blocks = [(patches[at : at + 3], valid[at : at + 3]) for at in (0, 3, 6)]
    found, expected = all_scores(lambda: blocks), all_scores(in_blocks(patches[valid], 3))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_two_similar_images_have_the_lowest_scores():
    patches = random_images(6)
    patches[4] = patches[1]
    scores = all_scores(in_blocks(patches, 3), 0.0).mean(axis=(1, 2))
    # Errors of a cosine near 1 become their root.
    assert scores[[1, 4]].max() < 1e-3 < 0.1 < scores[[0, 2, 3, 5]].min()


@pytest.mark.parametrize("count", [2, 5])
def test_references_score_like_other_images(features, make, count):
    """An image that is scored against references has the score that it has among them."""
    method = make(neighbors=(), nearby=2)
    together = jax.tree.map(lambda x: x[: count + 1], features)
    expected = method.across({}, {}, None, in_blocks(together, 3), 0)
    # The bank of category 1 consists of the other images, that of category 0 of the image itself.
    both = jax.tree.map(
        lambda x: jnp.stack([jnp.repeat(x[:1], count, axis=0), x[1 : count + 1]]), features
    )
    bank = method.prototypes({}, {}, ("a", "b"), both)
    image = jax.tree.map(lambda x: x[[0, 0]], features)
    found = jax.jit(method.score)({}, {}, bank, image, np.array([1, 0]))
    np.testing.assert_allclose(found.patches[0], expected.patches[0], atol=TOLERANCE)
    np.testing.assert_allclose(found.image["patch"][0], expected.image["patch"][0], atol=TOLERANCE)
    np.testing.assert_allclose(found.patches[1], 0, atol=1e-3)


def test_rescoring_by_hand():
    tokens = np.array([[1.0, 0], [0.6, 0.8], [0, 1]])
    scores = np.array([1.0, 2, 3])
    np.testing.assert_allclose(rescore(scores, tokens, (1,)), [0, 0.5, 1], atol=1e-6)
    expected = [0.3 / 1.6, (0.5 + 0.8) / 1.8, (1 + 0.4) / 1.8]
    np.testing.assert_allclose(rescore(scores, tokens, (2,)), expected, atol=1e-6)
    # More neighbors than images are all of them; equal scores stay equal.
    np.testing.assert_allclose(rescore(scores, tokens, (3, 9)), rescore(scores, tokens, (3,)))
    np.testing.assert_allclose(rescore(np.ones(3), tokens, (1, 2)), 0)
    # Images with negative cosines do not count, and one with the token 0 has its own score.
    tokens = np.array([[1, 0], [-1, 0.001], [0, -1], [0, 0]])
    np.testing.assert_allclose(rescore(np.arange(4.0), tokens, (3, 4)), np.arange(4) / 3, atol=1e-6)


def test_rejects_single_image_without_references(features, make):
    method = make()
    one = jax.tree.map(lambda x: x[:1], features)
    with pytest.raises(UserError, match=r"which has 1 image\. Expected at least 2\. .*references"):
        method.across({}, {}, None, in_blocks(one, 4), 0)


@pytest.mark.parametrize("options", [{"degrees": (1, 2)}, {"degrees": ()}, {"neighbors": (0,)}])
def test_rejects_wrong_options(make, options):
    with pytest.raises(UserError, match=rf"'{next(iter(options))}' is .* Expected"):
        make(**options)


@pytest.mark.parametrize(
    ("name", "options", "norm"),
    [
        ("clip-vit-b16", {}, False),
        ("dinov2-s14", {}, True),
        ("dinov2-s14", {"patch_norm": False}, False),
    ],
)
def test_final_norm_is_that_of_the_published_code(name, options, norm):
    """Both over CLIP (raw tokens) and over DINOv2 (its own intermediate layers)."""
    assert musc(describe_backbone(name), options).features_key[3] is norm
