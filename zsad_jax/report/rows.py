"""The schema of results.json and comparisons.json: one row per dataset and category."""

import math
from typing import Any

import numpy as np

from zsad_jax.data.benchmarks.facts import Level
from zsad_jax.metrics import AUPRO_200STEP, IMAGE_METRICS, METRICS
from zsad_jax.report import names

IDENTITY_COLUMNS = ("dataset", "category", *names.COLUMNS)
OPTION_COLUMNS = ("prompt_family", "sigma")  # fields of the configs of methods
COUNT_COLUMNS = ("n_images", "n_anomalous")
METRIC_COLUMNS = (*METRICS, AUPRO_200STEP)
RESULT_COLUMNS = IDENTITY_COLUMNS + COUNT_COLUMNS + METRIC_COLUMNS
_REQUIRED = ("dataset", "category", "method", "variant", "backbone")  # texts; others may be null
_WHOLE = ("seed", "epoch", "image_size", *COUNT_COLUMNS)
MEAN = "mean"  # the category of a dataset's mean

Row = dict[str, Any]


def result_row(**fields: Any) -> Row:
    """Returns a row of results.json, with every column of the schema in its order.

    Args:
      **fields: exactly the columns of `RESULT_COLUMNS`. Metrics are in [0, 1]; NaN means undefined and
        becomes None. NumPy scalars become plain numbers.

    Raises:
      ValueError: a column is unknown or missing, or a value is of the wrong type or outside of its range.
    """
    # Files of other versions are rejected as a whole: a column that is ignored could change what a row means.
    unknown = [name for name in fields if name not in RESULT_COLUMNS]
    missing = [name for name in RESULT_COLUMNS if name not in fields]
    if unknown or missing:
        parts = {"unknown": unknown, "missing": missing}
        words = (f"{what} columns {', '.join(names)}" for what, names in parts.items() if names)
        raise ValueError(" and ".join(words))
    row = {
        # json.dumps rejects most scalars of NumPy.
        name: value.item() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in ((name, fields[name]) for name in RESULT_COLUMNS)
    }
    row |= {name: _check_metric(name, row[name]) for name in METRIC_COLUMNS}
    for name in (*IDENTITY_COLUMNS, *COUNT_COLUMNS):
        _check_column(name, row[name])
    if row["n_anomalous"] > row["n_images"]:
        raise ValueError(f"n_anomalous is {row['n_anomalous']}, more than n_images")
    return row


def level_of(metric: str) -> Level:
    """Returns the level of a metric, ours or a paper's."""
    return "image" if metric in IMAGE_METRICS else "pixel"


def _check_metric(name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}, expected a number in [0, 1] or null")
    return float(value)


def _check_column(name: str, value: Any) -> None:
    if name in COUNT_COLUMNS or (name in _WHOLE and value is not None):
        good, expected = _is_number(value) and value == int(value) >= 0, "a whole number"
    elif name == "sigma":
        good, expected = value is None or _is_number(value), "a number or null"
    else:
        optional = name not in _REQUIRED
        good = isinstance(value, str) or (optional and value is None)
        expected = "a text" + " or null" * optional
    if not good:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
