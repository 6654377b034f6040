"""Tests of exact metrics: by hand, against scikit-learn and brute force, on goldens, and of invalid input."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as oracle

from zsad_jax import metrics
from zsad_jax.utils.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/tipsomaly/metrics_golden.npz"
SHAPE = (3, 5, 6)
SCORES = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),  # ties
    st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
)


def f1max_loop(labels, scores):
    def f1(threshold):
        true = np.sum(labels & (scores >= threshold))
        return 2 * true / (np.sum(scores >= threshold) + labels.sum())

    return max(f1(threshold) for threshold in scores)


def aupro_loop(maps, masks, limit=0.3):
    """Computes the per-region overlap threshold by threshold and region by region."""
    regions = []
    for image, mask in zip(maps, masks, strict=True):
        labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        regions += [image[labels == index + 1] for index in range(count)]
    area, last_fpr, last_pro = 0.0, 0.0, 0.0
    for threshold in sorted(set(maps.ravel()), reverse=True):
        fpr = np.mean(maps[~masks] >= threshold)
        pro = np.mean([np.mean(region >= threshold) for region in regions])
        if fpr > limit:
            at_limit = last_pro + (pro - last_pro) * (limit - last_fpr) / (fpr - last_fpr)
            return (area + (limit - last_fpr) * (last_pro + at_limit) / 2) / limit
        area += (fpr - last_fpr) * (last_pro + pro) / 2
        last_fpr, last_pro = fpr, pro
    raise AssertionError("the rate at the lowest threshold is 1")


@settings(max_examples=50, deadline=None)
@given(
    maps=hnp.arrays(np.float32, SHAPE, elements=SCORES),
    masks=hnp.arrays(bool, SHAPE),
)
def test_matches_scikit_learn_and_brute_force(maps, masks):
    assume(masks.any() and not masks.all())
    labels = masks.any(axis=(1, 2))
    found = metrics.compute(maps.max(axis=(1, 2)), labels, maps, masks)
    truth, scores = masks.ravel(), maps.ravel()
    expected = {
        "pixel_auroc": oracle.roc_auc_score(truth, scores),
        "pixel_ap": oracle.average_precision_score(truth, scores),
        "pixel_f1max": f1max_loop(truth, scores),
        "pixel_aupro": aupro_loop(maps, masks),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=50, deadline=None)
@given(scores=hnp.arrays(np.float64, 12, elements=SCORES), labels=hnp.arrays(bool, 12))
def test_image_metrics_match_scikit_learn(scores, labels):
    assume(labels.any() and not labels.all())
    found = metrics.compute(scores, labels.astype(int))
    assert found["image_auroc"] == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-9)
    assert found["image_ap"] == pytest.approx(
        oracle.average_precision_score(labels, scores), abs=1e-9
    )
    assert found["image_f1max"] == pytest.approx(f1max_loop(labels, scores), abs=1e-9)
    threshold = metrics.f1max_threshold(scores, labels)
    assert oracle.f1_score(labels, scores >= threshold) == pytest.approx(
        found["image_f1max"], abs=1e-9
    )
    fpr, tpr = metrics.roc_curve(scores, labels)
    assert np.trapezoid(tpr, fpr) == pytest.approx(found["image_auroc"], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    ranks=hnp.arrays(np.int64, SHAPE, elements=st.integers(0, 40)), masks=hnp.arrays(bool, SHAPE)
)
def test_invariant_to_monotone_rescaling(ranks, masks):
    assume(masks.any() and not masks.all())
    labels = [0, 1, 1]
    plain, rescaled = (
        metrics.compute(maps.max(axis=(1, 2)), labels, maps, masks)
        for maps in (ranks.astype(np.float64), np.exp(ranks / 7.0) - 3)
    )
    assert plain == pytest.approx(rescaled, abs=1e-12)


def test_values_by_hand():
    maps = np.array([[[0.9, 0.8], [0.1, 0.2]]])
    masks = np.array([[[1, 0], [0, 1]]])  # diagonal neighbors: one region
    found = metrics.compute([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert found["image_auroc"] == 0.75
    assert found["image_ap"] == pytest.approx(1 / 2 + 2 / 3 / 2)
    assert found["image_f1max"] == 0.8
    assert np.isnan([found[name] for name in metrics.PIXEL_METRICS]).all()
    found = metrics.compute([0.9], [1], maps, masks)
    assert found["pixel_auroc"] == 0.75
    # From (0, 1/2) on, the overlap stays 1/2 until half of the normal pixels are false positives.
    assert found["pixel_aupro"] == pytest.approx(0.5)


def test_constant_maps():
    masks = np.zeros((2, 4, 5), bool)
    masks[0, :2] = True
    found = metrics.compute([0.5, 0.5], [1, 0], np.full((2, 4, 5), 0.5), masks)
    assert found["image_auroc"] == found["pixel_auroc"] == 0.5
    assert found["pixel_ap"] == pytest.approx(masks.mean())
    assert found["pixel_aupro"] == pytest.approx(0.15)  # a diagonal up to 0.3


@pytest.mark.parametrize(
    ("labels", "mask", "word"),
    [([0, 0], 0, "normal"), ([1, 1], 1, "anomalous")],
)
def test_single_class_is_undefined_with_reason(labels, mask, word):
    maps = np.random.default_rng(0).uniform(size=(2, 4, 4))
    arguments = ([0.1, 0.2], labels, maps, np.full(maps.shape, mask))
    assert np.isnan(list(metrics.compute(*arguments).values())).all()
    reasons = metrics.undefined_reasons(*arguments)
    assert set(reasons) == set(metrics.METRICS)
    assert all(word in reason for reason in reasons.values())


def test_only_undefined_metrics_have_reasons():
    maps = np.random.default_rng(0).uniform(size=(2, 4, 4))
    assert "maps" in metrics.undefined_reasons([0.1, 0.2], [0, 1])["pixel_aupro"]
    assert "mask" in metrics.undefined_reasons([0.1, 0.2], [0, 1], maps)["pixel_aupro"]
    masks = np.zeros(maps.shape, bool)
    masks[1, 0] = True
    assert metrics.undefined_reasons([0.1, 0.2], [0, 1], maps, masks) == {}
    assert "no images" in metrics.undefined_reasons([], [])["image_auroc"]


MAPS, MASKS = np.zeros((2, 3, 3)), np.zeros((2, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.1, np.nan], [0, 1]), "entry 1 has NaN"),
        (([np.inf, 0.1], [0, 1]), "entry 0 has NaN or infinity"),
        ((["high", "low"], [0, 1]), "real numbers, but .* <U4 .such as 'high', 'low'"),
        ((None, [0, 1]), r"Image scores have the shape \(\); expected \[images\]"),
        (([0.1, None], [0, 1]), "type object .such as 0.1, None.*array.astype.float"),
        (([0.1, 1j], [0, 1]), "real numbers, but have the type complex128"),
        (([0.1, 0.2], [0, 2]), r"labels must be 0 \(normal\) or 1 \(anomalous\), but include 2"),
        (([0.1, 0.2], [-1, 1]), "but include -1"),
        (([0.1, 0.2], ["good", "bad"]), "but include 'good', 'bad'"),
        (([0.1, 0.2], [0, np.nan]), "but include nan"),
        (([0.1, 0.2], [0, 1, 1]), "There are 2 image scores for 3 image labels"),
        (([[0.1], [0.2]], [0, 1]), "Drop the axis of length 1"),
        (
            ([0.1, 0.2], [0, 1], np.where(np.arange(18) == 12, np.nan, 0).reshape(2, 3, 3), MASKS),
            "entry 1",
        ),
        (([0.1, 0.2], [0, 1], MAPS, MASKS + 0.5), "Masks must be 0"),
        (([0.1, 0.2], [0, 1], MAPS, MASKS[:, :2]), "Resize"),
        (([0.1, 0.2], [0, 1], MAPS, 255 * (MASKS + 1)), "Masks must be 0 .*, but include 255.0"),
        (([0.1, 0.2], [0, 1], MAPS[0], MASKS[0]), "expected .images, height, width.* per image"),
        (([0.1, 0.2], [0, 1], MAPS[:1], MASKS[:1]), "There are 1 anomaly maps for 2 image labels"),
        (([0.1, 0.2], [0, 1], MAPS, MASKS[:1]), "There are 1 masks for 2 image labels"),
        (([0.1, 0.2], [0, 1], MAPS[:, None], MASKS[:, None]), "maps .* Drop the axis of length 1"),
        (([0.1, 0.2], [0, 1], MAPS, MASKS[..., None]), "Masks .* Drop the axis of length 1"),
        (
            ([0.1, 0.2, 0.3], [0, 1, 1], [MAPS[0], MAPS[0][:1], MAPS[0]], None),
            r"different shapes: entry 1 is \(1, 3\), others are \(3, 3\)\. Resize",
        ),
        (([0.1, 0.2], [0, 1], [[0.1], [0.2, 0.3]]), r"entry 1 is \(2,\)"),
    ],
)
def test_rejects_invalid_input(arguments, words):
    with pytest.raises(UserError, match=words):
        metrics.compute(*arguments)


class Tensor:
    """Stands for a tensor of PyTorch, whose conversion fails while it requires a gradient."""

    def __init__(self, values, requires_grad=True):
        self.values, self.requires_grad = np.asarray(values), requires_grad

    def detach(self):
        return Tensor(self.values, requires_grad=False)

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        assert not self.requires_grad
        return self.values


@pytest.mark.parametrize(
    "form", [list, iter, Tensor, lambda x: [*map(Tensor, x)], jnp.asarray, lambda x: jnp.asarray(x, "bfloat16")]
)  # fmt: skip
def test_accepts_any_array(form):
    maps = np.arange(18.0).reshape(2, 3, 3)
    masks = maps > 13
    found = metrics.compute(form([0.25, 0.5]), form([0, 1]), form(maps), form(masks))
    assert found == metrics.compute([0.25, 0.5], [0, 1], maps, masks)


def test_single_class_has_no_roc_curve_and_no_threshold():
    with pytest.raises(UserError, match="one class is missing"):
        metrics.roc_curve([0.1, 0.2], [1, 1])
    with pytest.raises(UserError, match="at least one anomalous"):
        metrics.f1max_threshold([0.1, 0.2], [0, 0])


PIXEL_CASES = (
    "constant diagonal_touch inverted outside_0_1 perfect_binary perfect_soft random ties typical"
)


@pytest.mark.parametrize("case", [*PIXEL_CASES.split(), "tiny_and_large_region"])
def test_pixel_metrics_match_golden(case):
    golden = np.load(GOLDEN)
    maps, masks = golden[f"{case}/amap"], golden[f"{case}/mask"]
    if (
        case == "outside_0_1"
    ):  # that implementation applies a sigmoid first, which creates ties in float32
        maps = 1 / (1 + np.exp(-maps))
    found = metrics.compute(
        golden[f"{case}/image_score"], golden[f"{case}/image_label"], maps, masks
    )
    for ours, theirs in (("auroc", "auroc"), ("ap", "ap"), ("f1max", "f1-max")):
        assert found[f"pixel_{ours}"] == pytest.approx(golden[f"{case}/pixel_{theirs}"], abs=1e-6)


@pytest.mark.parametrize(
    "case", ["image_ties", "diagonal_touch", "inverted", "random", "ties", "typical"]
)
def test_image_metrics_match_golden(case):
    golden = np.load(GOLDEN)
    found = metrics.compute(golden[f"{case}/image_score"], golden[f"{case}/image_label"])
    for ours, theirs in (("auroc", "auroc"), ("ap", "ap"), ("f1max", "f1-max")):
        assert found[f"image_{ours}"] == pytest.approx(golden[f"{case}/image_{theirs}"], abs=1e-12)
