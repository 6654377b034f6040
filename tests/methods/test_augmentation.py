"""Tests of changes of training images, each alone, against plain numpy and scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from zsad_jax.methods.shared import augmentation

SIDE, COUNT = 33, 64
CENTER = (SIDE - 1) / 2
BLACK = np.zeros(3, np.float32)
KEYS = jax.random.split(jax.random.key(0), COUNT)
move = functools.partial(augmentation.move, fill=BLACK)


def draw(change, image, mask, probability=1.0):
    """Returns images and masks after the changes of all keys."""
    run = jax.vmap(functools.partial(change, probability=probability), in_axes=(0, None, None))
    images, masks = jax.jit(run)(KEYS, image, mask)
    return np.asarray(images), np.asarray(masks)


def spot(row, column):
    """Returns an image with one soft spot, at a place relative to the center, and its mask."""
    rows, columns = np.indices((SIDE, SIDE)) - CENTER
    distance = (rows - row) ** 2 + (columns - column) ** 2
    image = np.exp(-distance / 8, dtype=np.float32)
    return np.repeat(image[..., None], 3, axis=-1), np.float32(distance < 9)


def find(images):
    """Returns the centroids of spots, relative to the center."""
    gray = images if images.ndim == 3 else images[..., 0]
    weights = gray / gray.sum(axis=(1, 2), keepdims=True)
    return np.einsum("nyx,cyx->nc", weights, np.indices((SIDE, SIDE)) - CENTER)


def pixels(low=0.0, high=1.0):
    random = np.random.default_rng(0)
    image = random.uniform(low, high, (SIDE, SIDE, 3)).astype(np.float32)
    return image, random.integers(0, 2, (SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def keep(monkeypatch):
    """Returns a function that switches off all changes but one."""
    limits = {
        "angle": ("MAX_ANGLE", 0.0),
        "shift": ("MAX_SHIFT", 0.0),
        "quarter": ("QUARTERS", augmentation.QUARTERS[:1].repeat(4, axis=0)),
        "color": ("MAX_CHANGE", 0.0),
        "noise": ("NOISE", (0, 0)),
        "blur": ("BLURS", augmentation.BLURS[:1].repeat(5, axis=0)),
    }

    def switch_off(but):
        for name, (constant, nothing) in limits.items():
            if name != but:
                monkeypatch.setattr(augmentation, constant, nothing)

    return switch_off


@pytest.mark.parametrize("change", [move, augmentation.vary])
def test_depends_on_key_and_probability(change):
    image, mask = pixels()
    for found, expected in zip(draw(change, image, mask, 0.0), (image, mask), strict=True):
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    images, masks = draw(change, image, mask)
    again, alone = (
        draw(change, image, mask),
        jax.jit(functools.partial(change, probability=1.0))(KEYS[3], image, mask),
    )
    for found, same, one in zip((images, masks), again, alone, strict=True):
        np.testing.assert_array_equal(found, same)
        np.testing.assert_allclose(found[3], one, atol=1e-6)
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) == COUNT
    assert 0 <= images.min() <= images.max() <= 1
    assert set(np.unique(masks)) == {0, 1}


@pytest.mark.parametrize("change", [move, augmentation.vary])
def test_rotates_about_center_within_30_degrees(keep, change):
    keep("angle")
    images, masks = draw(change, *spot(0, 5))
    back = -1 if change is move else 1  # at probability 1, both axes are flipped
    rows, columns = back * find(images).T
    np.testing.assert_allclose(np.hypot(rows, columns), 5, atol=0.02)
    np.testing.assert_allclose(back * find(masks), np.stack([rows, columns], axis=1), atol=0.6)
    angles = np.arctan2(rows, columns)
    assert np.degrees(angles).min() < -25
    assert np.degrees(angles).max() > 25
    assert np.degrees(np.abs(angles)).max() < 30
    image = spot(11, 3)[0] + spot(-8, -14)[0]  # which are near the borders
    outside = {"mode": "grid-constant"} if change is move else {"mode": "mirror"}
    y, x = np.indices((SIDE, SIDE)) - CENTER
    for angle, one in zip(angles, draw(change, image, image[..., 0])[0][..., 0], strict=True):
        places = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
        expected = scipy.ndimage.map_coordinates(
            image[..., 0], np.add(places, CENTER), order=1, **outside
        )
        np.testing.assert_allclose(one[::back, ::back], expected, atol=0.02)


def test_shifts_within_15_percent_and_flips(keep):
    keep("shift")
    images, masks = draw(move, *spot(3, -5))
    shifts = (find(images) - (-3, 5)) / SIDE
    assert (np.abs(shifts).max(axis=0) > 0.12).all()
    assert (np.abs(shifts).max(axis=0) < 0.15).all()
    assert np.abs(np.corrcoef(shifts.T)[0, 1]) < 0.4
    np.testing.assert_allclose(find(masks), find(images), atol=0.6)


def test_flips_each_axis_with_the_probability(keep):
    keep("flips")
    image, mask = pixels()
    images, masks = draw(move, image, mask, 0.5)
    turned = [np.flip(mask, axes) for axes in ((), (0,), (1,), (0, 1))]
    kinds = np.array([[np.array_equal(one, other) for other in turned] for one in masks])
    assert kinds.sum() == COUNT
    assert (kinds.sum(axis=0) > COUNT / 8).all()
    for one, kind in zip(images, kinds.argmax(axis=1), strict=True):
        np.testing.assert_array_equal(one, np.flip(image, ((), (0,), (1,), (0, 1))[kind]))


def test_resamples_as_scipy():
    image, mask = pixels()
    places = np.random.default_rng(1).uniform(-1.2 * CENTER, 1.2 * CENTER, (2, SIDE, SIDE))
    fill = np.array([0.2, 0.5, 0.9], np.float32)
    found, moved = augmentation._resample(*map(jnp.float32, (image, mask, places)), fill)
    for i, value in enumerate(fill):
        padded = np.pad(image[..., i], 9, constant_values=value)
        expected = scipy.ndimage.map_coordinates(padded, places + CENTER + 9, order=1)
        np.testing.assert_allclose(found[..., i], expected, atol=1e-5)
    expected = scipy.ndimage.map_coordinates(np.pad(mask, 9), places + CENTER + 9, order=0)
    np.testing.assert_array_equal(moved, expected)


def test_turns_by_quarters(keep):
    keep("quarter")
    image, mask = pixels()
    images, masks = draw(augmentation.vary, image, mask)
    turns = [np.rot90(image, k) for k in range(4)]
    kinds = np.array([[np.array_equal(one, turn) for turn in turns] for one in images])
    assert kinds.sum() == COUNT
    assert (kinds.sum(axis=0) > COUNT / 8).all()
    for one, kind in zip(masks, kinds.argmax(axis=1), strict=True):
        np.testing.assert_array_equal(one, np.rot90(mask, kind))


def test_changes_contrast_and_brightness(keep, monkeypatch):
    keep("color")
    monkeypatch.setattr(augmentation, "CASES", np.ones(9, int))  # no other colors
    image, mask = pixels(0.4, 0.6)
    images, masks = draw(augmentation.vary, image, mask)
    lines = np.array([np.polyfit(image.ravel(), one.ravel(), 1) for one in images])
    expected = lines[:, :1] * image.ravel() + lines[:, 1:]
    np.testing.assert_allclose(images.reshape(COUNT, -1), expected, atol=1e-5)
    changes = np.abs(lines - (1, 0))
    assert (changes.max(axis=0) > 0.17).all()
    assert (changes.max(axis=0) < 0.2).all()
    assert np.abs(np.corrcoef(lines.T)[0, 1]) < 0.4
    np.testing.assert_array_equal(masks, np.broadcast_to(mask, masks.shape))


def test_adds_noise(keep):
    keep("noise")
    gray = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    images, _ = draw(augmentation.vary, gray, gray[..., 0])
    noise = 255 * (images - 0.5).reshape(COUNT, -1)
    assert np.abs(noise.mean(axis=1)).max() < 0.6
    variances = noise.var(axis=1)
    assert 9 < variances.min() < 15
    assert 45 < variances.max() < 55


def test_blurs(keep):
    keep("blur")
    image, mask = pixels()
    images, _ = draw(augmentation.vary, image, mask)
    weights = [(1,), np.ones(3), (1, 2, 1), (1, 4, 6, 4, 1), (2, 7, 14, 18, 14, 7, 2)]
    blurs = []
    for one in weights:
        blurred = image
        for axis in (0, 1):
            row = np.divide(one, np.sum(one))
            blurred = scipy.ndimage.correlate1d(blurred, row, axis, mode="mirror")
        blurs.append(blurred)
    kinds = np.array(
        [[np.allclose(one, blurred, atol=1e-5) for blurred in blurs] for one in images]
    )
    assert kinds.sum() == COUNT
    assert (kinds.sum(axis=0) >= 3).all()
    assert (kinds.sum(axis=0)[:2] > 12).all()


def test_changes_colors_by_factors():
    """Finds the factors of the first two changes on a gray image, on which the third one has no effect."""
    limit = 0.5
    image, _ = pixels(0.3, 0.5)
    gray = np.repeat(image[..., :1], 3, axis=-1)
    run = jax.vmap(
        functools.partial(augmentation.recolor, probability=0.7, limit=limit), in_axes=(0, None)
    )
    keys = jax.random.split(jax.random.key(1), 256)
    factors = []
    for one, colored in zip(*map(np.asarray, (run(keys, gray), run(keys, image))), strict=True):
        brightness = one.mean() / gray.mean()
        contrast = one.std() / gray.std() / brightness
        expected = brightness * image
        level = (expected @ (0.299, 0.587, 0.114)).mean()
        expected = level + contrast * (expected - level)
        without = (expected @ (0.299, 0.587, 0.114))[..., None]
        saturation = ((colored - without) * (expected - without)).sum() / np.square(
            expected - without
        ).sum()
        expected = without + saturation * (expected - without)
        np.testing.assert_allclose(colored, np.clip(expected, 0, 1), atol=2e-3)
        factors.append((brightness, contrast, saturation))
    used = np.abs(np.array(factors) - 1) > 1e-3
    assert (np.abs(used.mean(axis=0) - 0.7) < 0.1).all()
    low, high = np.quantile(factors, (0, 1), axis=0)
    assert (low > 1 - limit - 0.01).all()
    assert (low < 1 - 0.9 * limit).all()
    assert (high < 1 + limit + 0.01).all()
    assert (high > 1 + 0.9 * limit).all()
