"""The schema of results.json and comparisons.json: one row per dataset and category."""

import math
from typing import Any

import numpy as np

from zsad_jax.metrics import AUPRO_200STEP, METRICS

IDENTITY_COLUMNS = (
    "dataset",
    "category",
    "method",
    "variant",
    "backbone",
    "auxiliary",
    "checkpoint",
    "seed",
    "epoch",
    "class_name",
    "prompt_family",
    "image_size",
    "sigma",
    "image_score",
)
COUNT_COLUMNS = ("n_images", "n_anomalous")
METRIC_COLUMNS = (*METRICS, AUPRO_200STEP)
RESULT_COLUMNS = IDENTITY_COLUMNS + COUNT_COLUMNS + METRIC_COLUMNS
MEAN = "mean"  # the category of a dataset's mean

Row = dict[str, Any]


def result_row(**fields: Any) -> Row:
    """One row of results.json, with every column of the schema in its order.

    Args:
      **fields: exactly the columns of `RESULT_COLUMNS`. Metrics lie in [0, 1]; NaN means undefined and
        becomes None. NumPy scalars become plain numbers.

    Raises:
      ValueError: a column is unknown or missing, or a metric lies outside [0, 1].
    """
    unknown = [name for name in fields if name not in RESULT_COLUMNS]
    missing = [name for name in RESULT_COLUMNS if name not in fields]
    if unknown or missing:
        raise ValueError(f"A result row has unknown columns {unknown} and lacks {missing}.")
    row = {name: _plain(fields[name]) for name in RESULT_COLUMNS}
    for name in METRIC_COLUMNS:
        row[name] = _checked_metric(name, row[name])
    return row


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _checked_metric(name: str, value: Any) -> float | None:
    if value is None or math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, but a metric lies in [0, 1].")
    return float(value)
