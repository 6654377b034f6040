"""The schema of results.json and comparisons.json: one row per dataset and category."""

import math
from typing import Any

import numpy as np

from zsad_jax.data.benchmarks.facts import Level
from zsad_jax.metrics import AUPRO_200STEP, IMAGE_METRICS, METRICS
from zsad_jax.report import names
from zsad_jax.utils.config import describe_type, fits

IDENTITY_COLUMNS = ("dataset", "category", *names.COLUMNS)
OPTION_COLUMNS = ("prompt_family", "sigma")  # fields of the configs of methods
COUNT_COLUMNS = ("n_images", "n_anomalous")
METRIC_COLUMNS = (*METRICS, AUPRO_200STEP)
RESULT_COLUMNS = IDENTITY_COLUMNS + COUNT_COLUMNS + METRIC_COLUMNS
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("dataset", "category", "method", "variant", "backbone"), str),
    **dict.fromkeys(("seed", "epoch", "image_size"), int | None),
    **dict.fromkeys(COUNT_COLUMNS, int),
    **dict.fromkeys(("sigma", *METRIC_COLUMNS), float | None),
}  # of other columns: str | None
MEAN = "mean"  # the category of a dataset's mean

Row = dict[str, Any]


def result_row(**fields: Any) -> Row:
    """Returns a row of results.json: the columns of `RESULT_COLUMNS` in their order, with plain numbers.

    Metrics are in [0, 1]; NaN means undefined and becomes None.

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
    for name, value in row.items():
        hint = _TYPES.get(name, str | None)
        if not fits(value, hint):
            raise ValueError(f"{name} is {value!r}, expected {describe_type(hint)}")
        if name in METRIC_COLUMNS and value is not None and not 0 <= value <= 1:
            if not math.isnan(value):
                raise ValueError(f"{name} is {value}, expected a number in [0, 1]")
            row[name] = None
    if not 0 <= row["n_anomalous"] <= row["n_images"]:
        raise ValueError(f"n_anomalous is {row['n_anomalous']} of {row['n_images']} n_images")
    return row


def level_of(metric: str) -> Level:
    """Returns the level of a metric, ours or a paper's."""
    return "image" if metric in IMAGE_METRICS else "pixel"
