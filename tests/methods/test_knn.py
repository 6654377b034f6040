"""Tests of the comparison with normal reference images, against brute force in numpy."""

import dataclasses

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import zsad_jax.methods.knn as knn_module
from zsad_jax.methods.knn import KnnConfig, knn
from zsad_jax.methods.shared.config import scale_block
from zsad_jax.utils.errors import UserError

WIDTH, RANK = 24, 6
SIZE = 56
CLASSES = ("metal nut", "grid")
NEIGHBORS = {"sigma": 0.0, "num_views": 1}
SUBSPACE = {"variant": "subspace", "smoothing": "3x3", "num_views": 1}
# With errors relative to the largest score. At the default `tau`, the subspace ends between directions of
# almost equal variance, which rounding mixes.
BOTH = [(NEIGHBORS, 2e-6), (SUBSPACE, 1e-4)]


def draw(seed, *shape, noise=0.2):
    """Returns tokens with a signal of a few dimensions, and noise."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(RANK, WIDTH))
    signal = 3 * rng.normal(size=(*shape, RANK)) @ directions / np.sqrt(WIDTH)
    return signal + noise * rng.normal(size=(*shape, WIDTH)) + 0.5


def draw_tests(seed, grid, count=4):
    tests = draw(seed, count, *grid)
    tests[0, 1:3, 2:5] += 2
    return tests


@pytest.fixture(scope="module")
def model(load_golden_clip):
    """Returns a backbone of which only sizes are read."""
    clip = load_golden_clip("anomalyclip")
    size = dataclasses.replace(clip.preprocess, image_size=SIZE)
    return dataclasses.replace(clip, preprocess=size)


@pytest.fixture(scope="module")
def score(model):
    """Scores tests [n, h, w, d] of category 0, given references [category, image, h, w, d]."""

    def run(references, tests, category=None, names=None, **options):
        method = knn(model, options)
        names = names or ("a", "b", "c")[: len(references)]

        @jax.jit
        def scores(references, tests, category):
            prototypes = method.prototypes({}, {}, names, references)
            found = method.score({}, {}, prototypes, tests, category)
            return found, method.anomaly_map(found.patches, SIZE)

        category = np.zeros(len(tests), int) if category is None else np.asarray(category)
        found, maps = scores(np.float32(references), np.float32(tests), category)
        return found.image["top_mean"], found.patches[..., 0], maps

    return run


# --- brute force -----------------------------------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def smallest_mean(distances, k):
    return np.sort(distances, axis=-1)[..., :k].mean(axis=-1)


def brute_neighbors(references, tests, *, k=1, metric="cosine"):
    """Returns the distances of the tokens of one category to the nearest of its references."""
    rows, tokens = references.reshape(-1, WIDTH), tests.reshape(-1, WIDTH)
    if metric == "cosine":
        found = smallest_mean(1 - unit(tokens) @ unit(rows).T, k)
    else:
        squares = ((tokens[:, None] - rows) ** 2).sum(-1)
        found = np.sqrt(smallest_mean(squares, k))
    return found.reshape(tests.shape[:-1])


def brute_residuals(references, tests, *, tau):
    rows = references.reshape(-1, WIDTH)
    mean, (values, vectors) = rows.mean(0), np.linalg.eigh(np.cov(rows.T, ddof=1))
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = np.count_nonzero(np.cumsum(values) / values.sum() < tau) + 1
    basis = vectors[:, :rank]
    outside = (tests - mean) @ (np.eye(WIDTH) - basis @ basis.T)
    return (outside**2).sum(-1)


def brute_top(values, share=0.01):
    count = int(share * values.size)
    return np.sort(values.ravel())[-count:].mean() if count else values.max()


def brute_mask(tokens, threshold):
    """Returns the foreground of one image."""
    h, w, _ = tokens.shape
    rows = tokens.reshape(-1, WIDTH)
    _, vectors = np.linalg.eigh(np.cov(rows.T))
    first = vectors[:, -1]
    first = first * np.sign(first[np.abs(first).argmax()])
    scores = ((rows - rows.mean(0)) @ first).reshape(h, w)
    mask = scores > threshold
    if mask[int(0.2 * h) : int(0.8 * h), int(0.2 * w) : int(0.8 * w)].mean() <= 0.35:
        mask = -scores > threshold
    mask = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)


def resize(patches):
    return cv2.resize(patches, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


# --- neighbors -------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(12, 15), (20, 30), (9, 9), (1, 3)]),
    st.sampled_from([1, 2, 5]),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_distances_equal_brute_force(score, grid, k, count, seed):
    references, tests = draw(seed, 1, count, *grid), draw_tests(seed + 1, grid, 2)
    image, patches, maps = score(references, tests, k=k, num_views=1)
    expected = brute_neighbors(references, tests, k=k)
    np.testing.assert_allclose(patches, expected, atol=1e-6)
    np.testing.assert_allclose(image, [brute_top(one) for one in expected], atol=1e-6)
    smooth = [ndimage.gaussian_filter(resize(one), 4) for one in expected]
    np.testing.assert_allclose(maps, smooth, atol=1e-6)


def test_euclidean_distances_equal_brute_force(score):
    references, tests = draw(0, 1, 2, 12, 15), draw_tests(1, (12, 15))
    for k in (1, 3):
        _, patches, _ = score(references, tests, k=k, metric="L2", num_views=1)
        expected = brute_neighbors(references, tests, k=k, metric="L2")
        np.testing.assert_allclose(patches**2, expected**2, atol=1e-6 * (tests**2).sum(-1).max())


def test_prototypes_are_compiled_once_for_all_categories(model, monkeypatch):
    compiled, fit = [], knn_module.fit_subspace
    monkeypatch.setattr(
        knn_module, "fit_subspace", lambda *x, **k: compiled.append(x) or fit(*x, **k)
    )
    method = knn(model, SUBSPACE)
    for name in CLASSES:
        method.prototypes({}, {}, (name,), draw(0, 1, 2, 4, 4))
    assert len(compiled) == 1


@pytest.mark.parametrize("metric", ["cosine", "L2"])
def test_k_above_the_number_of_patches_takes_all(score, metric):
    references, tests = draw(0, 1, 1, 3, 3), draw_tests(1, (3, 6), 1)[:, :, :3]
    _, patches, _ = score(references, tests, k=50, metric=metric)
    expected = brute_neighbors(references, tests, k=9, metric=metric)
    np.testing.assert_allclose(patches, expected, atol=1e-5)


def test_references_have_distance_zero_and_more_of_them_never_raise_it(score):
    references = draw(0, 1, 3, 9, 9)
    _, patches, _ = score(references, references[0])
    np.testing.assert_allclose(patches, 0, atol=1e-6)
    tests = draw_tests(1, (9, 9))
    few, many = (score(references[:, :n], tests)[1] for n in (1, 3))
    assert (many <= few + 1e-6).all()
    assert (many < few - 1e-3).any()


def test_duplicate_references_change_nothing(score, assert_near):
    references, tests = draw(0, 1, 2, 9, 9), draw_tests(1, (9, 9))
    for options in (NEIGHBORS, SUBSPACE):
        once, twice = (
            score(one, tests, **options)[1]
            for one in (references, np.concatenate([references] * 2, 1))
        )
        assert_near(once, twice, 1e-4)


def test_token_of_norm_zero_is_unlike_any_reference(score):
    references, tests = draw(0, 1, 1, 9, 9), draw_tests(1, (9, 9))
    tests[0, 4, 4] = 0
    _, patches, _ = score(references, tests)
    assert patches[0, 4, 4] == 1
    assert np.isfinite(patches).all()


# --- subspace --------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(12, 15), (20, 30), (9, 9)]),
    st.sampled_from([0.5, 0.9, 0.97]),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_residuals_equal_brute_force(score, grid, tau, count, seed):
    references, tests = draw(seed, 1, count, *grid), draw_tests(seed + 1, grid, 2)
    image, patches, maps = score(references, tests, tau=tau, **SUBSPACE)
    expected = brute_residuals(references[0], tests, tau=tau)
    largest = expected.max()
    np.testing.assert_allclose(patches, expected, atol=3e-6 * largest)
    smooth = [cv2.GaussianBlur(resize(one), (3, 3), 4) for one in expected]
    np.testing.assert_allclose(maps, smooth, atol=3e-6 * largest)
    np.testing.assert_allclose(image, [brute_top(one) for one in smooth], atol=3e-6 * largest)


def test_subspace_with_all_variance_explains_references(score, assert_near):
    references = draw(0, 1, 2, 9, 9)
    _, patches, _ = score(references, references[0], tau=1.0, **SUBSPACE)
    np.testing.assert_allclose(patches, 0, atol=1e-9)
    # Fewer patches than dimensions: what is outside of their span remains.
    few, tests = references[:, :1, :3, :3], draw_tests(1, (9, 9))
    _, patches, _ = score(few, tests, tau=1.0, **SUBSPACE)
    centered = few.reshape(9, WIDTH) - few.mean((0, 1, 2, 3))
    span = np.linalg.svd(centered)[2][:8]
    away = tests - few.mean((0, 1, 2, 3))
    expected = (away**2).sum(-1) - ((away @ span.T) ** 2).sum(-1)
    assert_near(patches, expected, 1e-4)


def test_subspace_scales_with_features_and_ignores_a_shift(score, assert_near):
    references, tests = draw(0, 1, 2, 9, 9), draw_tests(1, (9, 9))
    _, plain, _ = score(references, tests, **SUBSPACE)
    _, scaled, _ = score(3 * references, 3 * tests, **SUBSPACE)
    _, shifted, _ = score(references + 2, tests + 2, **SUBSPACE)
    assert_near(scaled, 9 * plain, 1e-4)
    assert_near(shifted, plain, 1e-4)
    _, near, _ = score(references, tests, **NEIGHBORS)
    _, scaled, _ = score(3 * references, 3 * tests, **NEIGHBORS)
    _, shifted, _ = score(references + 2, tests + 2, **NEIGHBORS)
    np.testing.assert_allclose(scaled, near, atol=1e-6)
    assert np.abs(shifted - near).max() > 1e-2


# --- both ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "tolerance"), BOTH)
def test_rotation_of_the_feature_space_changes_nothing(score, assert_near, options, tolerance):
    references, tests = draw(0, 1, 2, 9, 9), draw_tests(1, (9, 9))
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(WIDTH, WIDTH)))[0]
    plain, turned = (score(references @ q, tests @ q, **options)[1] for q in (np.eye(WIDTH), turn))
    assert_near(turned, plain, tolerance)


@pytest.mark.parametrize(("options", "tolerance"), BOTH)
def test_categories_and_images_are_independent(score, assert_near, options, tolerance):
    """Compares with each category and each image alone, and with references in another order."""
    references, tests = draw(0, 3, 2, 9, 9), draw_tests(1, (9, 9), 5)
    references[1] += 0.5
    category = np.array([2, 0, 1, 1, 2])
    together = score(references, tests, category, **options)
    for row, one in enumerate(category):
        alone = score(references[one : one + 1, ::-1], tests[row : row + 1], **options)
        for found, expected in zip(alone, together, strict=True):
            assert_near(found[0], expected[row], tolerance)


@pytest.mark.parametrize(("grid", "share"), [((20, 30), 0.01), ((9, 9), 0.01), ((9, 9), 0.25)])
def test_image_score_is_mean_of_top_share(score, grid, share):
    references, tests = draw(0, 1, 2, *grid), draw_tests(1, grid)
    image, patches, _ = score(references, tests, top_share=share)
    expected = [brute_top(np.float64(one), share) for one in patches]
    np.testing.assert_allclose(image, expected, rtol=1e-6)


def test_never_holds_the_references_of_each_image(model):
    """Compares the peak memory of scoring with the size of the bank, in XLA's own account."""
    method = knn(model, {"num_views": 1})
    bank = {
        "bank": jax.ShapeDtypeStruct((3, 64, 64, WIDTH), np.float32),
        "valid": jax.ShapeDtypeStruct((3, 64, 64), bool),
        "masked": jax.ShapeDtypeStruct((3,), bool),
    }
    tests = jax.ShapeDtypeStruct((16, 8, 8, WIDTH), np.float32)
    category = jax.ShapeDtypeStruct((16,), int)
    compiled = jax.jit(method.score).lower({}, {}, bank, tests, category).compile()
    of_category = 64 * 64 * WIDTH * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * of_category


# --- foreground ------------------------------------------------------------------------------------------


def draw_object(seed, grid, *, sign=1, away=False):
    """Returns an image whose object, in the middle or in a corner, has another first component."""
    h, w = grid
    tokens = np.random.default_rng(seed).normal(size=(h, w, WIDTH))
    direction = np.linspace(1, 2, WIDTH) * sign
    where = (
        (slice(0, h // 5), slice(0, w))
        if away
        else (slice(h // 4, -h // 4), slice(w // 4, -w // 4))
    )
    tokens[where] += 5 * direction
    return tokens


@pytest.mark.parametrize("grid", [(12, 15), (9, 9), (20, 30)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("away", [False, True])
def test_foreground_equals_opencv(grid, sign, away):
    for seed, threshold in ((0, 10.0), (1, 0.0), (2, 22.0)):
        tokens = draw_object(seed, grid, sign=sign, away=away)
        found = knn_module.foreground(np.float32(tokens), threshold=threshold)
        np.testing.assert_array_equal(found, brute_mask(tokens, threshold))


def test_masks_the_background_of_named_classes(score):
    references = draw(0, 2, 2, 12, 15)
    tests = np.stack([draw_object(seed, (12, 15)) for seed in range(2)])
    _, plain, _ = score(references, tests, [0, 1])
    mask = np.stack([brute_mask(one, 10.0) for one in tests])
    assert mask.any()
    assert not mask.all()
    image, masked, _ = score(references, tests, [0, 1], mask_threshold=10.0)
    np.testing.assert_array_equal(masked, np.where(mask, plain, 0))
    # Patches of the background stay in the set of which the top share is taken.
    np.testing.assert_allclose(image, [brute_top(one) for one in np.float64(masked)], rtol=1e-6)
    mask[0] = True
    _, masked, _ = score(references, tests, [0, 1], mask_threshold=10.0, mask_only=("b",))
    np.testing.assert_array_equal(masked, np.where(mask, plain, 0))
    image, masked, _ = score(references, tests, [0, 1], mask_threshold=1e5)
    assert not masked.any()
    assert not image.any()


def test_masks_of_named_backbones_alone(score, model):
    references, tests = draw(0, 2, 2, 12, 15), draw_object(0, (12, 15))[None]
    _, plain, _ = score(references, tests)
    for backbones, same in ((("dinov2-s14",), True), ((model.name,), False)):
        options = {"mask_threshold": 10.0, "mask_backbones": backbones}
        _, found, _ = score(references, tests, **options)
        assert np.array_equal(found, plain) == same
    for of_dataset in KnnConfig.recipe.method_for.values():
        assert of_dataset["mask_backbones"] == (KnnConfig.recipe.backbone["name"],)


def test_names_of_masked_categories_may_have_underscores(score):
    references, tests = draw(0, 1, 2, 12, 15), draw_object(0, (12, 15))[None]
    found = [
        score(references, tests, names=(name,), mask_threshold=10.0, mask_only=("metal_nut",))[1]
        for name in ("metal nut", "metal_nut", "nut")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] == 0).sum() > (found[2] == 0).sum()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 0.9}, "'tau' is 0.9. Expected 0.99, since .* with variant='neighbors'"),
        ({**SUBSPACE, "k": 2}, "'k' is 2. Expected 1, since .* with variant='subspace'"),
        ({**SUBSPACE, "metric": "L2"}, "'metric' is 'L2'. Expected 'cosine'"),
        ({"mask_only": ("nut",)}, "'mask_only' is .* no effect without mask_threshold"),
        ({"mask_references": True}, "'mask_references' is .* no effect without mask_threshold"),
    ],
)
def test_rejects_options_without_effect(model, options, words):
    with pytest.raises(UserError, match=words):
        knn(model, options)


def test_blocks_that_are_scaled_to_one_count_once(model):
    """Compares the default blocks of the subspace over a shallow tower with the same blocks, each once."""
    blocks = (23, 24, 25, 26, 27, 28, 29)
    deep = knn(model, {"feature_layers": blocks, "tower_depth": 40})
    scaled = dict.fromkeys(scale_block(one, model.vision_depth, of=40) for one in blocks)
    assert len(scaled) < len(blocks)
    assert deep.features_key[0] == (*scaled,)


def test_ignores_the_background_of_references(score):
    references = np.stack([draw_object(seed, (12, 15)) for seed in range(2)])[None]
    tests = draw_tests(1, (12, 15))
    mask = np.stack([brute_mask(one, 10.0) for one in references[0]])
    options = {"mask_threshold": 10.0, "mask_references": True, "k": 3}
    _, found, _ = score(references, tests, **options)
    shown = np.stack([brute_mask(one, 10.0) for one in tests])
    expected = brute_neighbors(references[0][mask], tests, k=3)
    np.testing.assert_allclose(found, np.where(shown, expected, 0), atol=1e-6)
    # References without any foreground are compared as a whole.
    flat = draw(0, 1, 1, 12, 15, noise=0) * 1e-3
    _, found, _ = score(flat, references[0], **options)
    shown = np.stack([brute_mask(one, 10.0) for one in references[0]])
    expected = brute_neighbors(flat, references[0], k=3)
    np.testing.assert_allclose(found, np.where(shown, expected, 0), atol=1e-6)


# --- views -----------------------------------------------------------------------------------------------


def make_views(model, **options):
    method = knn(model, options)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    images[..., 0] = np.arange(28)[:, None] * 9
    return images, method.reference_views and method.reference_views(images, jax.random.key(3))


def test_even_views_are_rotated_by_equal_angles(model):
    images, views = make_views(model, num_views=4)
    assert views.shape == (8, 28, 28, 3)
    assert views.dtype == np.uint8
    np.testing.assert_array_equal(views[:2], images)
    for quarter in (1, 2, 3):
        # Exact apart from the rows that leave the canvas, since the center is that of the published code.
        turned = np.rot90(images, quarter, axes=(1, 2))
        shifts = {1: (1, 0), 2: (1, 1), 3: (0, 1)}[quarter]
        rolled = np.roll(turned, shifts, axis=(1, 2))
        view = views[2 * quarter : 2 * quarter + 2]
        np.testing.assert_array_equal(view[:, 2:-2, 2:-2], rolled[:, 2:-2, 2:-2])
    assert make_views(model, num_views=1)[1] is None
    assert (make_views(model, num_views=8)[1].min(axis=(1, 2, 3)) > 0).any()


def test_random_views_differ_and_follow_the_key(model):
    images, views = make_views(model, num_views=3, views="random")
    np.testing.assert_array_equal(views[:2], images)
    np.testing.assert_array_equal(views, make_views(model, num_views=3, views="random")[1])
    assert len({view.tobytes() for view in views}) == 6
    # Nearest pixels of the image, and black corners.
    for view, image in zip(views, [*images] * 3, strict=True):
        known = {tuple(pixel) for pixel in image.reshape(-1, 3)} | {(0, 0, 0)}
        assert {tuple(pixel) for pixel in view.reshape(-1, 3)} <= known
    assert (views[2:] == 0).all(axis=-1).any(axis=(1, 2)).all()


# --- the method ------------------------------------------------------------------------------------------


def test_features_are_the_mean_of_layers(load_golden_clip):
    clip = load_golden_clip("anomalyclip")
    images = np.random.default_rng(0).random((2, 56, 56, 3), np.float32)
    options = {"feature_layers": (12, 24), "patch_norm": False}
    method = knn(clip, options)
    found = method.features(clip.params, {}, images)
    encoded = clip.encode_image(clip.params, images, layers=(4, 8), patch_norm=False)
    np.testing.assert_allclose(found, encoded.patches.mean(axis=1), atol=1e-6)
    assert found.shape[-1] == clip.vision_width
    assert method.features_key != knn(clip, {"feature_layers": (12, 24)}).features_key
    # Blocks of a tower of 40, and of one of 24, in this one of 8.
    options = {"feature_layers": (23, 29), "tower_depth": 40, "patch_norm": False}
    assert knn(clip, options).features_key[0] == (5, 6)
    with pytest.raises(UserError, match="at least one block between 1 and 40"):
        knn(clip, options | {"feature_layers": (41,)})
