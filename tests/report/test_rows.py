import numpy as np
import pytest

from zsad_jax.report import RESULT_COLUMNS, result_row


@pytest.fixture
def fields():
    values = dict.fromkeys(RESULT_COLUMNS, 0.5)
    return values | {"dataset": "visa", "category": "mean", "seed": 3, "n_images": np.int64(7)}


def test_row_keeps_the_order_of_the_schema(fields):
    shuffled = dict(reversed(fields.items()))
    assert tuple(result_row(**shuffled)) == RESULT_COLUMNS


def test_undefined_metrics_become_none_and_numpy_becomes_plain(fields):
    row = result_row(**fields | {"pixel_aupro": np.float32("nan"), "image_ap": np.float32(0.25)})
    assert row["pixel_aupro"] is None
    assert row["image_ap"] == 0.25
    assert type(row["image_ap"]) is float
    assert type(row["n_images"]) is int


def test_unknown_and_missing_columns_are_named(fields):
    del fields["sigma"]
    with pytest.raises(ValueError, match=r"unknown columns \['colour'\] and lacks \['sigma'\]"):
        result_row(**fields, colour="red")


@pytest.mark.parametrize("value", [-0.01, 1.01, 93.4])
def test_a_metric_outside_its_range_is_refused(fields, value):
    with pytest.raises(ValueError, match="image_auroc"):
        result_row(**fields | {"image_auroc": value})
