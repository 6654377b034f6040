"""Tests of metrics accumulated over batches for a category, and of their mean over categories."""

import jax
import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.metrics import category
from zsad_jax.metrics.binned import bin_maps
from zsad_jax.utils.errors import UserError


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    masks = np.zeros((10, 24, 24), bool)
    masks[::2, 4:12, 6:15] = True
    masks[::4, 18:20, 2:5] = True
    maps = (rng.uniform(size=masks.shape) + 0.4 * masks).astype(np.float32)
    return maps.max(axis=(1, 2)), masks.any(axis=(1, 2)), maps, masks


def gathered(images, batch=10, *, exact=False, **options):
    state = category.init(exact=exact)
    for start in range(0, 10, batch):
        state = category.update(
            state, *(array[start : start + batch] for array in images), **options
        )
    return state


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 10])
def test_batches_match_compute(images, exact, batch):
    found = category.compute(gathered(images, batch, exact=exact))
    expected = metrics.compute(*images) | {
        metrics.AUPRO_200STEP: metrics.pixel_aupro_200step(images[2], images[3])
    }
    assert found.values == pytest.approx(expected, abs=1e-9 if exact else 1e-4)
    assert found.reasons == {}


def test_exact_metrics_reject_binned_maps(images):
    scores, labels, maps, masks = images
    with pytest.raises(UserError, match="Pass the maps that were binned"):
        category.update(
            category.init(exact=True), scores, labels, jax.device_get(bin_maps(maps)), masks
        )


@pytest.mark.parametrize("exact", [False, True])
def test_accepts_thresholds_of_200_step_aupro(images, exact):
    """Uses maps whose scores equal the thresholds up to the rounding error between the two formulas."""
    scores, labels, maps, masks = images
    steps = np.rint(200 * (maps - maps.min()) / np.ptp(maps))
    maps = np.float32(0.5) + np.float32(1e-4) * steps  # so few values that streaming does not round
    state = gathered((scores, labels, maps, masks), exact=exact)
    forms = [
        (
            category.compute(state, thresholds=form).values[metrics.AUPRO_200STEP],
            metrics.pixel_aupro_200step(maps, masks, thresholds=form),
        )
        for form in ("torch", "numpy")
    ]
    for found, expected in forms:
        assert found == pytest.approx(expected, abs=1e-12)
    assert forms[0] != forms[1]


@pytest.mark.parametrize("exact", [False, True])
def test_merge_equals_one_pass(images, exact):
    first, second = (
        category.update(category.init(exact=exact), *(array[part] for array in images))
        for part in (slice(7), slice(7, None))
    )
    merged = category.compute(category.merge(first, second))
    assert merged.values == pytest.approx(
        category.compute(gathered(images, exact=exact)).values, abs=1e-12
    )


def test_several_image_scores_are_reported_by_name(images):
    scores, labels, maps, masks = images
    state = category.update(
        category.init(), {"first": scores, "second": -scores}, labels, maps, masks
    )
    first, second = (
        category.compute(state, image_score=name).values for name in ("first", "second")
    )
    assert category.compute(state).values == first
    assert first["image_auroc"] == pytest.approx(1 - second["image_auroc"])
    assert first["pixel_ap"] == second["pixel_ap"]
    with pytest.raises(UserError, match=r"'third'\. Available: first, second"):
        category.compute(state, image_score="third")
    with pytest.raises(UserError, match="Use the same names"):
        category.update(state, scores, labels)


def test_images_without_mask_are_excluded_from_pixel_metrics(images):
    scores, labels, maps, masks = images
    has_mask = np.arange(10) != 2  # an anomalous image
    masks = masks & has_mask[:, None, None]
    state = category.update(category.init(exact=True), scores, labels, maps, masks, has_mask)
    found = category.compute(state)
    expected = metrics.compute(scores[has_mask], labels[has_mask], maps[has_mask], masks[has_mask])
    assert {name: found.values[name] for name in metrics.PIXEL_METRICS} == pytest.approx(
        {name: expected[name] for name in metrics.PIXEL_METRICS}
    )
    assert found.values["image_auroc"] == metrics.compute(scores, labels)["image_auroc"]
    reason = (
        "1 anomalous image has no usable mask and is excluded from pixel metrics (9 images used)"
    )
    assert found.notes == (metrics.Note((), reason, num_without_mask=1),)


@pytest.mark.parametrize("exact", [False, True])
def test_no_image_with_mask(images, exact):
    scores, labels, maps, masks = images
    none = np.zeros(10, bool)
    state = category.update(category.init(exact=exact), scores, labels, maps, masks, none)
    found = category.compute(state)
    assert "no image has a ground-truth mask" in found.reasons["pixel_aupro"]
    assert np.isnan(found.values["pixel_aupro"])
    assert not np.isnan(found.values["image_auroc"])
    assert "no images" in category.compute(category.init(exact=exact)).reasons["image_auroc"]


def test_rejects_has_mask_of_other_length(images):
    with pytest.raises(UserError, match="3 entries of has_mask for 10 image labels"):
        category.update(category.init(), *images, np.ones(3, bool))


def test_mean_excludes_undefined_values():
    nan = float("nan")
    found = metrics.mean_over(
        {
            "a": {"image_auroc": 0.5, "pixel_auroc": nan, "pixel_ap": nan},
            "b": {"image_auroc": 0.7, "pixel_auroc": 0.9, "pixel_ap": None},
            "c": {"image_auroc": 0.9, "pixel_auroc": 0.8, "pixel_ap": nan},
        }
    )
    assert found.values == pytest.approx(
        {"image_auroc": 0.7, "pixel_auroc": 0.85, "pixel_ap": nan}, nan_ok=True
    )
    assert found.reasons == {"pixel_ap": "undefined for every category"}
