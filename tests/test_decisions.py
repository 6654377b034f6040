import numpy as np
import pytest

from zsad_jax.decisions import (
    Threshold,
    decide,
    describe_support,
    find_regions,
    parse_scale,
    parse_threshold,
    quantile_threshold,
    shortest,
)
from zsad_jax.errors import UserError


def test_a_threshold_is_a_number_or_a_quantile_over_good_images():
    assert parse_threshold("0.6") == Threshold(value=0.6)
    assert parse_threshold("-1") == Threshold(value=-1.0)
    assert parse_threshold("line 3/good:0.99") == Threshold(good="line 3/good", quantile=0.99)
    assert parse_threshold("c:/good:0.5") == Threshold(good="c:/good", quantile=0.5)


@pytest.mark.parametrize("text", ["", "good", "good:", ":0.9", "good:1", "good:0", "good:x", "nan"])
def test_other_thresholds_are_refused(text):
    with pytest.raises(UserError, match="neither a number nor FOLDER:QUANTILE"):
        parse_threshold(text)


def test_a_scale_is_two_rising_numbers():
    assert parse_scale("0.25,2") == (0.25, 2.0)
    for text in ("1", "1,0", "0,0", "0,1,2", "a,b", "0,inf"):
        with pytest.raises(UserError, match="not LOW,HIGH"):
            parse_scale(text)


def test_the_quantile_lets_the_asked_share_of_good_images_pass():
    scores = np.random.default_rng(0).permutation(np.arange(1, 101) / 100)
    threshold = quantile_threshold(scores.tolist(), 0.95)
    assert threshold == 0.95
    assert [decide(score, threshold) for score in (0.95, 0.951)] == ["normal", "anomalous"]
    assert np.mean([decide(score, threshold) == "normal" for score in scores]) == 0.95
    assert quantile_threshold([0.3, 0.1], 0.99) == 0.3


def test_saturated_scores_stay_apart():
    """Values of a softmax that saturates: the quantile is one of them, never 0."""
    scores = [shortest(np.float32(value)) for value in (3e-7, 4e-8, 1 - 6e-8, 1 - 1.2e-7)]
    assert scores[:2] == [3e-7, 4e-8]
    assert [np.float32(score) for score in scores[2:]] == [
        np.float32(1 - 6e-8), np.float32(1 - 1.2e-7)
    ]  # fmt: skip
    threshold = quantile_threshold(scores[:2], 0.5)
    assert threshold == 4e-8
    assert [decide(score, threshold) for score in scores[:2]] == ["anomalous", "normal"]


def test_peaks_are_not_rounded_away():
    _, [region] = find_regions(np.full((4, 5), 3e-7, np.float32), 1e-8, (4, 5))
    assert region["peak"] == 3e-7


def test_too_few_good_images_are_told():
    assert describe_support(100, 0.99) == ""
    assert describe_support(10, 0.9) == ""
    assert "at least 100 known-good images and there are 99" in describe_support(99, 0.99)


def test_regions_are_told_in_pixels_of_the_image():
    anomaly_map = np.zeros((20, 10), np.float32)
    anomaly_map[2:4, 7:10] = 0.8
    anomaly_map[3, 8] = 0.9
    anomaly_map[10, 0] = anomaly_map[11, 1] = 0.95  # touch at a corner
    anomaly_map[15, 5] = 0.5  # not above
    mask, regions = find_regions(anomaly_map, 0.5, (40, 30))
    np.testing.assert_array_equal(mask, anomaly_map > 0.5)
    assert regions == [
        {"box": [0, 20, 6, 4], "area": 12, "peak": 0.95},
        {"box": [21, 4, 9, 4], "area": 36, "peak": 0.9},
    ]
    left, top, width, height = regions[1]["box"]
    cut = np.kron(mask, np.ones((2, 3)))[top : top + height, left : left + width]
    assert cut.all()


def test_no_regions_below_the_threshold():
    mask, regions = find_regions(np.full((4, 5), 0.5, np.float32), 0.5, (4, 5))
    assert not mask.any()
    assert regions == []
