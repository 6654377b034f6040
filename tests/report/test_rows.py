import numpy as np
import pytest

from zsad_jax.report.rows import (
    METRIC_COLUMNS,
    RESULT_COLUMNS,
    SEED_COLUMNS,
    combine_seeds,
    result_row,
)


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


def test_row_with_references_has_their_number(fields):
    rows = [result_row(**fields, shots=shots) for shots in (2, 4)]
    assert tuple(rows[0]) == (*RESULT_COLUMNS, "shots")
    assert len(combine_seeds([*rows, result_row(**fields | {"seed": 4}, shots=2)])) == 2
    with pytest.raises(ValueError, match="shots is 0"):
        result_row(**fields, shots=0)


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
        *(("seeds", value) for value in (1, 2.0, None)),
        *(("image_auroc_std", value) for value in (-0.1, 1.1, "0.1")),
    ],
)
def test_rejects_wrong_values(fields, column, value):
    combined = {"seeds": 2} | dict.fromkeys(SEED_COLUMNS[1:], 0.1) if column in SEED_COLUMNS else {}
    with pytest.raises(ValueError, match=f"{column} is"):
        result_row(**fields | combined | {column: value})


def test_rows_of_several_seeds_have_further_columns(fields):
    with pytest.raises(ValueError, match="missing columns image_auroc_std, "):
        result_row(**fields, seeds=3)
    spreads = dict.fromkeys(SEED_COLUMNS[1:], np.float64("nan"))
    row = result_row(**spreads, **fields, seeds=3)
    assert tuple(row) == RESULT_COLUMNS + SEED_COLUMNS
    assert row["image_ap_std"] is None


def test_seeds_are_combined_into_mean_and_sample_deviation(fields):
    values = {1: (0.80, 0.5, None), 2: (0.84, None, None), 4: (0.88, 0.5, 0.7)}
    metrics = ("image_auroc", "image_ap", "pixel_ap")
    rows = [
        result_row(
            **fields
            | {"seed": seed, "checkpoint": f"x-{seed}"}
            | dict(zip(metrics, of, strict=True))
        )
        for seed, of in values.items()
    ]
    other = result_row(**fields | {"variant": "sigma=8"})
    first, second = combine_seeds([rows[0], other, *rows[1:]])
    assert second == other
    assert result_row(**first) == first
    assert (first["seed"], first["checkpoint"], first["seeds"]) == (1, "x-1", 3)
    assert [first[metric] for metric in metrics] == pytest.approx([0.84, 0.5, 0.7])
    assert first["image_auroc_std"] == pytest.approx(0.04)  # sqrt((0.04² + 0 + 0.04²) / 2)
    assert first["image_ap_std"] == 0
    assert first["pixel_ap_std"] is None  # one value


def test_combines_different_seeds_only(fields):
    once, again = (result_row(**fields | {"image_ap": value}) for value in (0.1, 0.2))
    assert combine_seeds([once, again]) == [again]
    files = [result_row(**fields | {"seed": None, "checkpoint": name}) for name in "ab"]
    assert combine_seeds(files) == files
