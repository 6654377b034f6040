"""Tests of AUPRO with 200 thresholds: golden values, and differences from exact AUPRO."""

import pathlib

import numpy as np
import pytest
import scipy.ndimage

from zsad_jax import metrics
from zsad_jax.metrics import stepped
from zsad_jax.utils.errors import UserError

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
GOLDEN = np.load(GOLDENS / "tipsomaly/metrics_golden.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN if key.endswith("/amap")})
ONE_CLASS = ("all_normal", "all_defect_pixels")
FORMS = ("torch", "numpy")


def stepwise_loop(maps, masks, thresholds):
    fpr, pro = [], []
    for threshold in thresholds:
        overlaps = []
        for image, mask in zip(maps, masks, strict=True):
            labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
            overlaps += [np.mean(image[labels == index + 1] > threshold) for index in range(count)]
        pro.append(np.mean(overlaps))
        fpr.append(np.mean(maps[masks == 0] > threshold))
    fpr, pro = np.array(fpr), np.array(pro)
    kept = fpr < 0.3
    stretched = (fpr[kept] - fpr[kept].min()) / (fpr[kept].max() - fpr[kept].min())
    return np.trapezoid(pro[kept][::-1], stretched[::-1])


@pytest.mark.parametrize("case", CASES)
def test_matches_golden(case):
    # Where the published code returns 0 or fails for a single class, the value is undefined here.
    expected = np.nan if case in ONE_CLASS else float(GOLDEN[f"{case}/pixel_aupro"])
    found = metrics.pixel_aupro_200step(GOLDEN[f"{case}/amap"], GOLDEN[f"{case}/mask"])
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("case", [case for case in CASES if f"{case}/aupro_thresholds" in GOLDEN])
def test_thresholds_are_bit_equal_to_golden(case):
    maps = GOLDEN[f"{case}/amap"]
    found = stepped._thresholds(float(maps.min()), float(maps.max()), "torch")
    np.testing.assert_array_equal(found, GOLDEN[f"{case}/aupro_thresholds"])


def test_matches_golden_of_numpy_form():
    """Checks that the torch form differs by more than rounding, so that the two cannot be confused."""
    golden = np.load(GOLDENS / "anomalyclip/metrics.npz")
    maps, masks, expected = golden["maps"], golden["masks"] > 0, golden["pixel-aupro"]
    found = metrics.pixel_aupro_200step(maps, masks, thresholds="numpy")
    assert found == pytest.approx(float(expected), abs=1e-12)
    assert abs(metrics.pixel_aupro_200step(maps, masks) - expected) > 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_matches_loop_over_thresholds(seed, form):
    rng = np.random.default_rng(seed)
    masks = scipy.ndimage.gaussian_filter(rng.normal(size=(3, 20, 25)), (0, 2, 2)) > 0.2
    maps = np.round(rng.uniform(size=masks.shape) + 0.5 * masks, 2).astype(np.float32)
    thresholds = stepped._thresholds(float(maps.min()), float(maps.max()), form)
    found = metrics.pixel_aupro_200step(maps, masks, thresholds=form)
    assert found == pytest.approx(stepwise_loop(maps, masks, thresholds), abs=1e-9)


def test_depends_on_scale_unlike_exact_aupro():
    maps, masks = GOLDEN["typical/amap"], GOLDEN["typical/mask"]
    plain, squared = (metrics.pixel_aupro_200step(values, masks) for values in (maps, maps**4))
    assert abs(plain - squared) > 1e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("low", [0.5, 0.0])
def test_sorts_thresholds_closer_than_float32(form, low):
    high = np.float32(low) + 60 * np.spacing(np.float32(low))
    thresholds = stepped._thresholds(low, float(high), form)
    assert 0 < len(thresholds) <= 201
    assert (np.diff(thresholds) >= 0).all()


def test_rejects_unknown_thresholds():
    maps = np.zeros((1, 4, 4))
    with pytest.raises(UserError, match=r"thresholds='nunpy' is unknown. Did you mean numpy\?"):
        metrics.pixel_aupro_200step(maps, maps > 0, thresholds="nunpy")


def test_no_maps():
    assert np.isnan(metrics.pixel_aupro_200step(np.zeros((0, 4, 4)), np.zeros((0, 4, 4))))
