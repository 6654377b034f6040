"""The schema of results.json and comparisons.json: one row per dataset and category."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from zsad_jax.data.benchmarks.facts import Level
from zsad_jax.metrics import AUPRO_200STEP, IMAGE_METRICS, METRICS
from zsad_jax.report import names
from zsad_jax.utils.config import describe_type, fits

SHOTS = "shots"  # a column of results with reference images alone
IDENTITY_COLUMNS = ("dataset", "category", *names.COLUMNS)
OPTION_COLUMNS = ("prompt_family", "sigma")  # fields of the configs of methods
COUNT_COLUMNS = ("n_images", "n_anomalous")
METRIC_COLUMNS = (*METRICS, AUPRO_200STEP)
# Of every row: all but `SHOTS`, the last of these columns.
RESULT_COLUMNS = IDENTITY_COLUMNS[:-1] + COUNT_COLUMNS + METRIC_COLUMNS
STD_OF = {metric: f"{metric}_std" for metric in METRIC_COLUMNS}
SEED_COLUMNS = ("seeds", *STD_OF.values())  # of rows that combine several seeds
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("dataset", "category", "method", "variant", "backbone"), str),
    **dict.fromkeys(("seed", "epoch", "image_size"), int | None),
    **dict.fromkeys((*COUNT_COLUMNS, "seeds", SHOTS), int),
    **dict.fromkeys(("sigma", *METRIC_COLUMNS, *STD_OF.values()), float | None),
}  # of other columns: str | None
MEAN = "mean"  # the category of a dataset's mean

Row = dict[str, Any]


def result_row(**fields: Any) -> Row:
    """Returns a row of results.json: the columns of `RESULT_COLUMNS` in their order, with plain numbers.

    Metrics are in [0, 1]; NaN means undefined and becomes None. A row with reference images also has `shots`. A
    row that combines several seeds also has the columns of `SEED_COLUMNS`: their number, and the standard
    deviations of the metrics.

    Raises:
      ValueError: a column is unknown or missing, or a value is of the wrong type or outside of its range.
    """
    # Files of other versions are rejected as a whole: a column that is ignored could change what a row means.
    columns = RESULT_COLUMNS + (SHOTS,) * (SHOTS in fields)
    columns += SEED_COLUMNS * any(name in fields for name in SEED_COLUMNS)
    unknown = [name for name in fields if name not in columns]
    missing = [name for name in columns if name not in fields]
    if unknown or missing:
        parts = {"unknown": unknown, "missing": missing}
        words = (f"{what} columns {', '.join(names)}" for what, names in parts.items() if names)
        raise ValueError(" and ".join(words))
    row = {
        # json.dumps rejects most scalars of NumPy.
        name: value.item() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in ((name, fields[name]) for name in columns)
    }
    for name, value in row.items():
        hint = _TYPES.get(name, str | None)
        if not fits(value, hint):
            raise ValueError(f"{name} is {value!r}, expected {describe_type(hint)}")
        if name.removesuffix("_std") in METRIC_COLUMNS and not 0 <= (value or 0) <= 1:
            if not math.isnan(value):
                raise ValueError(f"{name} is {value}, expected a number in [0, 1]")
            row[name] = None
    if not 0 <= row["n_anomalous"] <= row["n_images"]:
        raise ValueError(f"n_anomalous is {row['n_anomalous']} of {row['n_images']} n_images")
    if row.get(SHOTS, 1) < 1:
        raise ValueError(f"shots is {row[SHOTS]}, expected at least 1")
    if row.get("seeds", 2) < 2:
        raise ValueError(f"seeds is {row['seeds']}, expected at least 2")
    return row


class CombinedRow(dict[str, Any]):
    """A row that combines rows of several seeds, its `singles`, as `combine_seeds` describes it."""

    def __init__(self, singles: Sequence[Row]):
        super().__init__(singles[0] | {"seeds": len(singles)})
        self.singles = singles
        for metric, name in STD_OF.items():
            defined = [row[metric] for row in singles if row[metric] is not None]
            self[metric] = statistics.fmean(defined) if defined else None
            self[name] = _deviation(defined)


def singles(row: Row) -> Sequence[Row]:
    """Returns the single-seed rows that a row was made of; where they are not known, the row itself."""
    return getattr(row, "singles", (row,))


def seedless(row: Row) -> tuple[Any, ...]:
    """Returns what a row has in common with those of other seeds: all but seed, checkpoint and metrics."""
    # Prompts of a file have no seed: another file is another setting.
    varies = ("seed", "checkpoint") * (row["seed"] is not None)
    return tuple(row.get(name) for name in IDENTITY_COLUMNS + COUNT_COLUMNS if name not in varies)


def combine_seeds(rows: Iterable[Row]) -> list[Row]:
    """Returns a row for each group of single-seed rows that differ only in seed, checkpoint and metrics.

    Metrics are means over the seeds in which they are defined, and have their sample standard deviation (None
    for fewer than two values) in `<metric>_std`. The other columns are those of the first row. Of several rows
    with the same seed the last one counts. The only row of a group is returned as it is.
    """
    groups: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        groups.setdefault(seedless(row), {})[row["seed"]] = row
    members = (list(group.values()) for group in groups.values())
    return [CombinedRow(group) if len(group) > 1 else group[0] for group in members]


def spread_over_seeds(rows: Sequence[Row], metric: str) -> float | None:
    """Returns the standard deviation over seeds of the mean of rows, which must be of the same seeds."""
    if len(rows) == 1:
        return rows[0].get(STD_OF[metric])
    by_seed: dict[Any, list[Any]] = {}
    for one in itertools.chain.from_iterable(map(singles, rows)):
        by_seed.setdefault(one["seed"], []).append(one[metric])
    if any(len(values) < len(rows) for values in by_seed.values()):
        return None
    return _deviation([statistics.fmean(of) for of in by_seed.values() if None not in of])


def _deviation(values: Sequence[float]) -> float | None:
    # Of a sample: the seeds stand for all possible trainings.
    return statistics.stdev(values) if len(values) > 1 else None


def level_of(metric: str) -> Level:
    """Returns the level of a metric, ours or a paper's."""
    return "image" if metric in IMAGE_METRICS else "pixel"
