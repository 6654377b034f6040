"""Our own results from one or several working directories, a column for each way a method was run."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from zsad_jax.report import names, wording
from zsad_jax.report.compare import (
    UNLIKE_PAPER,
    WITHOUT_MASK,
    Deviation,
    find_deviations,
    is_usual,
    training_of,
)
from zsad_jax.report.published import USUAL
from zsad_jax.report.rows import (
    IDENTITY_COLUMNS,
    SHOTS,
    Row,
    combine_seeds,
    result_row,
    seedless,
    singles,
)
from zsad_jax.utils.config import describe_type, fits
from zsad_jax.utils.errors import UserError, did_you_mean
from zsad_jax.utils.files import PathLike
from zsad_jax.utils.records import parse_json

TRAINING = "training"  # in place of the auxiliary dataset, which differs between targets
# What distinguishes the columns of a method.
_ALWAYS = ("method", "variant", "backbone", TRAINING, "image_score", SHOTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ours:
    """Our results of a method, run in one way.

    Attributes:
      method: key of the method.
      name: the method, and what distinguishes this column from its others.
      setting: backbone, variant and other distinctions, for CSV.
      training: the protocol of the published numbers to compare with, or what the prompts were trained on.
      rows: results by (dataset, category), each of one seed or combined.
      deviations: why results cannot be compared with published ones.
      remark: sentences on the whole column: demo models, and what differs from the config files.
    """

    method: str
    name: str
    setting: str
    training: str
    rows: Mapping[tuple[str, str], Row]
    deviations: Sequence[Deviation]
    remark: str = ""

    @property
    def description(self) -> str:
        """A sentence on what was run."""
        words = dict.fromkeys(wording.describe(row) for row in self.rows.values())
        return f"Ours, {self.name}: {'; '.join(words)}. {self.remark}".rstrip()


class _Result(NamedTuple):
    """A row, and the run.json and the folder of its run."""

    row: Row
    run: Mapping[str, Any]
    folder: str = ""


_Column = dict[tuple[str, str], list[_Result]]  # by (dataset, category), a result for each seed


def read_workdirs(folders: Iterable[PathLike], *, comparisons: bool = False) -> list[Ours]:
    """Reads the results of finished runs, and combines those that differ only in their seed.

    A later result wins where two have the same setting and seed. With `comparisons`, their variants and other
    image scores are included. A missing or damaged file raises `UserError`.
    """
    results: list[_Result] = []
    for folder in map(pathlib.Path, folders):
        if not (folder / "results.json").is_file():
            near = (folder.parent / "results.json", *sorted(folder.glob("*/results.json")))
            found = [str(path.parent) for path in near if path.is_file()]
            remedy = did_you_mean(found[:3]) or "Run python -m zsad_jax.main to its end first."
            raise UserError(f"{folder} has no results.json. {remedy}")
        path = folder / "run.json"
        # Optional: without it, remarks on masks, settings and demo models are missing.
        run = _read(path, _check_run) if path.is_file() else {}
        paths = (folder / "results.json", *[folder / "comparisons.json"] * comparisons)
        rows = [row for path in paths if path.is_file() for row in _read(path, _read_rows)]
        path = folder / "results_by_seed.json"
        if path.is_file():
            wanted = set(map(seedless, rows))
            rows = [row for row in _read(path, _read_rows) if seedless(row) in wanted]
        results += [_Result(row, run, str(folder)) for row in rows]
    return _gather(results)


def columns_of(rows: Iterable[Row], run: Mapping[str, Any] | None = None) -> list[Ours]:
    """Returns the columns of one run, from its results.json and run.json."""
    return _gather(_Result(one, run or {}) for row in rows for one in singles(row))


def _gather(results: Iterable[_Result]) -> list[Ours]:
    columns: dict[tuple[Any, ...], _Column] = {}
    replaced: dict[tuple[str, str, str], dict[str, None]] = {}
    for result in results:
        row, known = result.row, _with_training(result.row)
        column = columns.setdefault(tuple(known[key] for key in _ALWAYS), {})
        # Popped, so that the later result also comes later in the order of the column.
        before = column.pop((row["dataset"], row["category"]), [])
        kept = [one for one in before if _differ_by_seed(one, result)]
        for one in before:
            if not _differ_by_seed(one, result):
                key = (result.folder, one.folder, names.method_name(row["method"]))
                replaced.setdefault(key, {})[names.dataset_name(row["dataset"])] = None
        column[row["dataset"], row["category"]] = [*kept, result]
    for (folder, folder_before, method), datasets in replaced.items():
        # One warning for all datasets of a method: two whole runs may overlap.
        what = f"{method} on {', '.join(datasets)}"
        logging.warning("Results of %s in %s replace those in %s.", what, folder, folder_before)
    samples = [next(iter(column.values()))[0].row for column in columns.values()]
    return [_name_column(column, samples) for column in columns.values()]


def _differ_by_seed(one: _Result, other: _Result) -> bool:
    """Returns whether two results are of the same setting and of different seeds."""
    # Options of training are not columns of results.
    settings = [(seedless(each.row), each.run.get(UNLIKE_PAPER, {})) for each in (one, other)]
    combined = "seeds" in one.row or "seeds" in other.row
    return settings[0] == settings[1] and one.row["seed"] != other.row["seed"] and not combined


def _name_column(column: _Column, samples: Sequence[Row]) -> Ours:
    """Names a column by what distinguishes it from the method's others; each has a sample."""
    rows = [row for results in column.values() for row in combine_seeds(one.row for one in results)]
    method, usual = rows[0]["method"], is_usual(rows[0])
    known = [_with_training(sample) for sample in samples if sample["method"] == method]
    differs = [key for key in _ALWAYS if len({row[key] for row in known}) > 1]
    if not usual and TRAINING not in differs:
        differs.append(TRAINING)
    settings = ["backbone", *["variant"] * bool(rows[0]["variant"])]
    settings += [key for key in _ALWAYS[3:] if key in differs]
    words = _describe(rows, differs)
    # Masks and settings are recorded by run, and a column may combine several runs.
    runs: dict[str, list[_Result]] = {}
    for result in itertools.chain(*column.values()):
        runs.setdefault(result.folder, []).append(result)
    several = any("seeds" in row for row in rows)
    remarks = (one for each in runs.values() for one in _remarks(each[0].run, several))
    return Ours(
        method=method,
        name=names.method_name(method) + (f" ({words})" if words else ""),
        setting=_describe(rows, settings),
        training=USUAL if usual else training_of(rows[0]),
        rows={(row["dataset"], row["category"]): row for row in rows},
        deviations=[
            deviation
            for each in runs.values()
            for deviation in find_deviations(combine_seeds(one.row for one in each), each[0].run)
        ],
        remark=" ".join(dict.fromkeys(remarks)),
    )


def _remarks(run: Mapping[str, Any], several: bool) -> list[str]:
    changed = run.get("changed_keys", {}).items()
    named = {key: value for key, value in changed if key != "seed" or not several}
    changes = wording.describe_changes({"changed_keys": named})
    demonstration = [wording.DEMONSTRATION] * (run.get("demonstration") is True)
    return [*demonstration, *[f"Changed in the config: {changes}."] * bool(changes)]


def _with_training(row: Row) -> dict[str, Any]:
    return {SHOTS: 0, **row, TRAINING: training_of(row)}


def _describe(rows: Sequence[Row], keys: Iterable[str]) -> str:
    """Describes what a column's rows have in common; a variant and a backbone stand for themselves."""
    row = rows[0]
    auxiliaries = dict.fromkeys(row["auxiliary"] for row in rows if row["auxiliary"])
    # Usually VisA for MVTec AD, and MVTec AD for all others.
    trained_on = " or ".join(map(names.dataset_name, auxiliaries))
    words = {
        "method": "",
        "variant": row["variant"] or "defaults",
        "backbone": row["backbone"],
        TRAINING: f"trained on {trained_on}" if trained_on else "",
    }
    said = (words[key] if key in words else wording.describe_column(row, key) for key in keys)
    return ", ".join(filter(None, said))


def _read(path: pathlib.Path, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(parse_json(path.read_bytes()))
    except ValueError as error:
        raise UserError(
            f"Cannot read {path} ({error}). Undo the change to the file, or run the experiment again."
        ) from error


def _check_run(run: Any) -> dict[str, Any]:
    """Returns run.json if the entries that reports use are well-formed."""
    if not isinstance(run, dict):
        raise ValueError("expected an object")
    hints = {WITHOUT_MASK: int, UNLIKE_PAPER: list, "changed_keys": Any}
    for key, hint in ((key, Mapping[str, hint]) for key, hint in hints.items()):
        entry = run.get(key, {})
        if not fits(entry, hint) or (key == UNLIKE_PAPER and {*map(len, entry.values())} - {2}):
            raise ValueError(f"{key} is {entry!r}, expected {describe_type(hint)}")
    return run


def _read_rows(rows: Any) -> list[Row]:
    """Returns the checked rows of results.json or comparisons.json, whose settings must differ."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of rows")
    known: dict[tuple[Any, ...], int] = {}
    checked: list[Row] = []
    for number, row in enumerate(rows, start=1):
        place = f"row {number}, {row.get('dataset')!r}, {row.get('category')!r}"
        try:
            checked.append(result_row(**row))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        first = known.setdefault(tuple(map(checked[-1].get, IDENTITY_COLUMNS)), number)
        if first != number:
            raise ValueError(f"{place}: the row repeats row {first}")
    return checked
