"""Our own results of one or several working directories, a column for each way a method was run."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from zsad_jax.report import names, wording
from zsad_jax.report.coverage import Partial, find_partial
from zsad_jax.report.rows import Row, result_row
from zsad_jax.report.training import describe_training, is_usual, training_of
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

TRAINING = (
    "training"  # what stands in a column's identity for the auxiliary set, which targets may share
)
# What makes two results of a method different columns; of comparisons also the last.
_ALWAYS, _COMPARED = ("method", "variant", "backbone", TRAINING, "image_score"), ("seed",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ours:
    """A method as we ran it.

    Attributes:
      method: key of the method.
      name: the method, and what differs where it was run in several ways.
      setting: backbone, variant and what else tells it from others, for CSV.
      training: what the prompts were trained on, see `training_of`.
      usual: whether that is what the papers' main numbers stand for.
      rows: results by (dataset, category).
      partial: see `find_partial`.
      demonstration: whether the backbone is a demonstration model.
    """

    method: str
    name: str
    setting: str
    training: str
    usual: bool
    rows: Mapping[tuple[str, str], Row]
    partial: Partial
    demonstration: bool = False

    @property
    def about(self) -> str:
        """What was run, in a sentence."""
        words = dict.fromkeys(wording.describe(row) for row in self.rows.values())
        remark = f" {wording.DEMONSTRATION}" if self.demonstration else ""
        return f"Ours, {self.name}: {'; '.join(words)}.{remark}"


def read_workdirs(folders: Iterable[PathLike], *, comparisons: bool = False) -> list[Ours]:
    """Reads results.json of working directories; a later one wins where two have the same result.

    Args:
      folders: of finished runs.
      comparisons: reads comparisons.json as well (variants, other image scores, single seeds).

    Raises:
      UserError: there is no results.json, or a file cannot be read.
    """
    results: list[_Result] = []
    for folder in map(pathlib.Path, folders):
        if not (folder / "results.json").is_file():
            raise UserError(
                f"{folder} has no results.json; name working directories in which python -m zsad_jax.main"
                " has finished."
            )
        run = _read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
        run = run if isinstance(run, dict) else {}
        demonstration = run.get("demonstration") is True
        names_of_files = ("results.json", "comparisons.json")[: 1 + comparisons]
        for path in (folder / name for name in names_of_files):
            rows = _read_rows(path) if path.is_file() else []
            compared = path.name == "comparisons.json"
            results += [_Result(row, run, str(folder), compared, demonstration) for row in rows]
    return _gather(results)


def columns_of(rows: Iterable[Row], run: Mapping[str, Any] | None = None) -> list[Ours]:
    """The columns of one run.

    Args:
      rows: results.json.
      run: run.json.
    """
    return _gather([_Result(row, run or {}) for row in rows])


class _Result(NamedTuple):
    """A row and where it comes from."""

    row: Row
    run: Mapping[str, Any]  # run.json of its run
    folder: str = ""
    compared: bool = False
    demonstration: bool = False

    @property
    def column(self) -> tuple[Any, ...]:
        known = _known(self.row)
        return tuple(known[key] for key in _ALWAYS + _COMPARED * self.compared)

    @property
    def place(self) -> tuple[str, str]:
        return self.row["dataset"], self.row["category"]


def _gather(results: Iterable[_Result]) -> list[Ours]:
    columns: dict[tuple[Any, ...], dict[tuple[str, str], _Result]] = {}
    replaced: dict[tuple[str, str, str], dict[str, None]] = {}
    for result in results:
        column = columns.setdefault(result.column, {})
        before = column.pop(result.place, None)
        if before is not None:
            said = (result.folder, before.folder, names.method_name(result.row["method"]))
            replaced.setdefault(said, {})[names.dataset_name(result.row["dataset"])] = None
        column[result.place] = result
    for (folder, folder_before, method), datasets in replaced.items():
        datasets_told = ", ".join(datasets)
        logging.warning(
            "%s replaces what %s has of %s on %s.", folder, folder_before, method, datasets_told
        )
    return _name_columns(columns)


def _name_columns(
    columns: Mapping[tuple[Any, ...], Mapping[tuple[str, str], _Result]],
) -> list[Ours]:
    """Names each column by what tells it from the method's others."""
    named = []
    for column, results in columns.items():
        siblings = [other for other in columns if other[0] == column[0]]
        keys = _ALWAYS + _COMPARED * any(len(other) > len(_ALWAYS) for other in siblings)
        samples = [_known(next(iter(columns[other].values())).row) for other in siblings]
        rows = [result.row for result in results.values()]
        usual = all(map(is_usual, rows))
        differs = [key for key in keys if len({known[key] for known in samples}) > 1]
        if not usual and TRAINING not in differs:
            differs.append(TRAINING)
        compared = ("image_score", *_COMPARED) * (len(column) > len(_ALWAYS))
        settings = ["backbone", *["variant"] * bool(rows[0]["variant"])]
        settings += [key for key in keys[3:] if key in differs or key in compared]
        words = _describe(rows, differs)
        named.append(
            Ours(
                method=rows[0]["method"],
                name=names.method_name(rows[0]["method"]) + (f" ({words})" if words else ""),
                setting=_describe(rows, settings),
                training=training_of(rows[0]),
                usual=usual,
                rows={place: result.row for place, result in results.items()},
                partial=_find_partial(results.values()),
                demonstration=any(result.demonstration for result in results.values()),
            )
        )
    return named


def _find_partial(results: Iterable[_Result]) -> Partial:
    """Returns the same over the results of several runs, each with its run.json."""
    runs: dict[str, list[_Result]] = {}
    for result in results:
        runs.setdefault(result.folder, []).append(result)
    partial: Partial = {}
    for members in runs.values():
        partial |= find_partial([one.row for one in members], members[0].run)
    return partial


def _known(row: Row) -> dict[str, Any]:
    """A row with its training."""
    return row | {TRAINING: training_of(row)}


def _describe(rows: Sequence[Row], keys: Iterable[str]) -> str:
    """What a column's rows have in common: a variant and a backbone stand for themselves."""
    words = []
    for key in keys:
        if key == "variant":
            words.append(rows[0][key] or "defaults")
        elif key == "backbone":
            words.append(rows[0][key])
        elif key == TRAINING:
            words.append(describe_training(rows))
        elif rows[0][key] not in (None, ""):
            words.append(f"{names.COLUMNS[key].lower()} {rows[0][key]}")
    return ", ".join(filter(None, words))


def _read_rows(path: pathlib.Path) -> list[Row]:
    try:
        return [result_row(**row) for row in _read_json(path)]
    except (TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(f"{path} cannot be read ({reason}); run the experiment again.")
