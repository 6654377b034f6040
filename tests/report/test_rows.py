import numpy as np
import pytest

from zsad_jax.report.rows import METRIC_COLUMNS, RESULT_COLUMNS, result_row


@pytest.fixture
def fields():
    values = dict.fromkeys(RESULT_COLUMNS) | dict.fromkeys(METRIC_COLUMNS, 0.5)
    texts = {"dataset": "visa", "category": "mean", "method": "tps", "variant": "", "backbone": "x"}
    return values | texts | {"seed": 3, "n_images": np.int64(7), "n_anomalous": 4}


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
    with pytest.raises(ValueError, match="unknown columns color and missing columns sigma"):
        result_row(**fields, color="red")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(
            ("image_auroc", value)
            for value in (-0.01, 1.01, 93.4, "0.9", True, [0.9], float("inf"))
        ),
        *(("method", value) for value in (None, 3)),
        *(("auxiliary", value) for value in (0.5, ["visa"])),
        ("n_anomalous", -1),
        ("n_anomalous", 8),
        *(("n_images", value) for value in (None, 7.5, "7")),
        *(("epoch", "2"), ("sigma", "4"), ("image_size", {})),
    ],
)
def test_rejects_wrong_values(fields, column, value):
    with pytest.raises(ValueError, match=f"{column} is"):
        result_row(**fields | {column: value})
