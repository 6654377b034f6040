import numpy as np
import pytest

from zsad_jax.report import RESULT_COLUMNS, result_row


@pytest.fixture
def fields():
    values = dict.fromkeys(RESULT_COLUMNS, 0.5)
    return values | {"dataset": "visa", "category": "mean", "seed": 3, "n_images": np.int64(7)}


def test_row_keeps_column_order(fields):
    shuffled = dict(reversed(fields.items()))
    assert tuple(result_row(**shuffled)) == RESULT_COLUMNS


def test_converts_undefined_metrics_to_none_and_numpy_to_python(fields):
    row = result_row(**fields | {"pixel_aupro": np.float32("nan"), "image_ap": np.float32(0.25)})
    assert row["pixel_aupro"] is None
    assert row["image_ap"] == 0.25
    assert type(row["image_ap"]) is float
    assert type(row["n_images"]) is int


def test_reports_unknown_and_missing_columns(fields):
    del fields["sigma"]
    with pytest.raises(ValueError, match=r"unknown columns \['color'\] and lacks \['sigma'\]"):
        result_row(**fields, color="red")


@pytest.mark.parametrize("value", [-0.01, 1.01, 93.4])
def test_rejects_metric_outside_its_range(fields, value):
    with pytest.raises(ValueError, match="image_auroc"):
        result_row(**fields | {"image_auroc": value})
