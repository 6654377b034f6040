import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax import metrics
from zsad_jax.predict.thresholds import (
    Threshold,
    decide,
    describe_support,
    find_regions,
    parse_scale,
    parse_threshold,
    quantile_threshold,
    shortest,
)
from zsad_jax.utils.errors import UserError


def test_threshold_is_number_or_quantile_of_good_images():
    assert parse_threshold("0.6") == Threshold(value=0.6)
    assert parse_threshold("-1") == Threshold(value=-1.0)
    assert parse_threshold("line 3/good:0.99") == Threshold(good="line 3/good", quantile=0.99)
    assert parse_threshold("c:/good:0.5") == Threshold(good="c:/good", quantile=0.5)


@pytest.mark.parametrize("text", ["", "good", "good:", ":0.9", "good:1", "good:0", "good:x", "nan"])
def test_rejects_other_thresholds(text):
    with pytest.raises(UserError, match="Expected a number, or FOLDER:QUANTILE"):
        parse_threshold(text)


def test_scale_is_two_increasing_numbers():
    assert parse_scale("0.25,2") == (0.25, 2.0)
    for text in ("1", "1,0", "0,0", "0,1,2", "a,b", "0,inf"):
        with pytest.raises(UserError, match="Expected LOW,HIGH"):
            parse_scale(text)


SCORES = st.lists(st.floats(0, 2, width=32), min_size=2, max_size=30)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@given(scores=SCORES, seed=st.integers(0, 2**16))
def test_best_threshold_reproduces_its_metric(precision, scores, seed):
    """Uses scores from `predict` and from the detector, and the threshold as typed in a shell."""
    labels = np.random.default_rng(seed).integers(0, 2, len(scores)).astype(bool)
    labels[:2] = True, False
    written = [shortest(score) for score in scores]
    values = np.array(scores if precision is np.float32 else written, precision)
    threshold = parse_threshold(repr(metrics.f1max_threshold(values, labels))).value
    found = np.array([decide(score, threshold) == "anomalous" for score in written])
    f1 = 2 * (found & labels).sum() / (found.sum() + labels.sum())
    assert f1 == pytest.approx(metrics.compute(values, labels)["image_f1max"])
    np.testing.assert_array_equal(found, values >= precision(threshold))


@given(scores=SCORES, quantile=st.floats(0.01, 0.99))
def test_quantile_threshold_is_lowest_with_that_share_below(scores, quantile):
    scores = [shortest(score) for score in scores]
    threshold = quantile_threshold(scores, quantile)

    def share_below(threshold):
        return np.mean([decide(score, threshold) == "normal" for score in scores])

    assert share_below(threshold) >= quantile - 1e-12
    assert share_below(np.nextafter(np.float32(threshold), np.float32(-1))) < quantile + 1e-12
    assert threshold == shortest(threshold)


def test_good_images_at_the_quantile_are_normal():
    scores = np.random.default_rng(0).permutation(np.arange(1, 101) / 100)
    threshold = quantile_threshold(scores.tolist(), 0.95)
    assert [decide(score, threshold) for score in (0.95, 0.951)] == ["normal", "anomalous"]
    assert np.mean([decide(score, threshold) == "normal" for score in scores]) == 0.95
    assert decide(0.3, quantile_threshold([0.3, 0.1], 0.99)) == "normal"


def test_decides_on_equal_scores():
    assert [decide(score, 0.5) for score in (0.4999, 0.5, 0.5001)] == [
        "normal", "anomalous", "anomalous"
    ]  # fmt: skip
    assert decide(shortest(np.float32(0.1)), float(np.float32(0.1))) == "anomalous"


def test_distinguishes_saturated_scores():
    """Uses scores of a saturated softmax; the threshold is just above one of them and never 0."""
    scores = [shortest(np.float32(value)) for value in (3e-7, 4e-8, 1 - 6e-8, 1 - 1.2e-7)]
    assert scores[:2] == [3e-7, 4e-8]
    assert [np.float32(score) for score in scores[2:]] == [
        np.float32(1 - 6e-8), np.float32(1 - 1.2e-7)
    ]  # fmt: skip
    threshold = quantile_threshold(scores[:2], 0.5)
    assert 4e-8 < threshold < 4.00001e-8
    assert [decide(score, threshold) for score in scores[:2]] == ["anomalous", "normal"]


def test_peaks_are_not_rounded_away():
    _, [region] = find_regions(np.full((4, 5), 3e-7, np.float32), 1e-8, (4, 5))
    assert region["peak"] == 3e-7


def test_warns_of_too_few_good_images():
    assert describe_support(100, 0.99) == ""
    assert describe_support(10, 0.9) == ""
    assert "at least 100 known-good images, but only 99" in describe_support(99, 0.99)


def test_regions_are_in_pixels_of_the_image():
    anomaly_map = np.zeros((20, 10), np.float32)
    anomaly_map[2:4, 7:10] = 0.8
    anomaly_map[3, 8] = 0.9
    anomaly_map[10, 0] = anomaly_map[11, 1] = 0.95  # touch at a corner
    anomaly_map[15, 5] = 0.5
    anomaly_map[17, 5] = 0.4999
    mask, regions = find_regions(anomaly_map, 0.5, (40, 30))
    np.testing.assert_array_equal(mask, anomaly_map >= 0.5)
    *regions, equal = regions
    assert equal == {"box": [15, 30, 3, 2], "area": 6, "peak": 0.5}
    assert regions == [
        {"box": [0, 20, 6, 4], "area": 12, "peak": 0.95},
        {"box": [21, 4, 9, 4], "area": 36, "peak": 0.9},
    ]
    left, top, width, height = regions[1]["box"]
    cut = np.kron(mask, np.ones((2, 3)))[top : top + height, left : left + width]
    assert cut.all()


def test_no_regions_below_the_threshold():
    mask, regions = find_regions(np.full((4, 5), 0.5, np.float32), 0.51, (4, 5))
    assert not mask.any()
    assert regions == []
