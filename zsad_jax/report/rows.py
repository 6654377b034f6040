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
MEAN = "mean"  # the category of a dataset's mean

Row = dict[str, Any]


def result_row(**fields: Any) -> Row:
    """Returns a row of results.json, with every column of the schema in its order.

    Args:
      **fields: exactly the columns of `RESULT_COLUMNS`. Metrics are in [0, 1]; NaN means undefined and
        becomes None. NumPy scalars become plain numbers.

    Raises:
      ValueError: a column is unknown or missing, or a metric is outside [0, 1].
    """
    # Files of other versions are rejected as a whole: a column that is ignored could change what a row means.
    unknown = [name for name in fields if name not in RESULT_COLUMNS]
    missing = [name for name in RESULT_COLUMNS if name not in fields]
    if unknown or missing:
        raise ValueError(f"A result row has unknown columns {unknown} and lacks {missing}")
    row = {
        # json.dumps rejects most scalars of NumPy.
        name: value.item() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in ((name, fields[name]) for name in RESULT_COLUMNS)
    }
    return row | {name: _check_metric(name, row[name]) for name in METRIC_COLUMNS}


def level_of(metric: str) -> Level:
    """Returns the level of a metric, ours or a paper's."""
    return "image" if metric in IMAGE_METRICS else "pixel"


def _check_metric(name: str, value: Any) -> float | None:
    if value is None or math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected a number in [0, 1]")
    return float(value)
