"""Our own results of one or several working directories, a column for each way a method was run."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from zsad_jax.errors import UserError
from zsad_jax.files import PathLike
from zsad_jax.report import names, wording
from zsad_jax.report.coverage import find_partial
from zsad_jax.report.rows import Row, result_row

# What makes two results of a method different columns; of comparisons also the last two.
_ALWAYS, _COMPARED = ("method", "variant", "backbone"), ("image_score", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ours:
    """A method as we ran it.

    Attributes:
      method: key of the method.
      name: the method, and what differs where it was run in several ways.
      setting: backbone and variant, for CSV.
      rows: results by (dataset, category).
      demonstration: whether the backbone is a demonstration model.
    """

    method: str
    name: str
    setting: str
    rows: Mapping[tuple[str, str], Row]
    demonstration: bool = False

    @functools.cached_property
    def partial(self) -> dict[str, str]:
        """The datasets of which other images were evaluated than are published, each with a sentence."""
        return find_partial(self.rows.values())

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
        demonstration = isinstance(run, dict) and run.get("demonstration") is True
        names_of_files = ("results.json", "comparisons.json")[: 1 + comparisons]
        for path in (folder / name for name in names_of_files):
            rows = _read_rows(path) if path.is_file() else []
            compared = path.name == "comparisons.json"
            results += [_Result(row, str(folder), compared, demonstration) for row in rows]
    return _gather(results)


def columns_of(rows: Iterable[Row]) -> list[Ours]:
    """The columns of one run.

    Args:
      rows: results.json.
    """
    return _gather([_Result(row) for row in rows])


class _Result(NamedTuple):
    """A row and where it comes from."""

    row: Row
    folder: str = ""
    compared: bool = False
    demonstration: bool = False

    @property
    def column(self) -> tuple[Any, ...]:
        return tuple(self.row[key] for key in _ALWAYS + _COMPARED * self.compared)

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
        compared = any(len(other) > len(_ALWAYS) for other in siblings)
        keys = _ALWAYS + _COMPARED * compared
        samples = [next(iter(columns[other].values())).row for other in siblings]
        row = next(iter(results.values())).row
        differs = _describe(row, [key for key in keys if len({r[key] for r in samples}) > 1])
        settings = ("backbone", *(("variant",) if row["variant"] else ()))
        settings += _COMPARED * (len(column) > len(_ALWAYS))
        named.append(
            Ours(
                method=row["method"],
                name=names.method_name(row["method"]) + (f" ({differs})" if differs else ""),
                setting=_describe(row, settings),
                rows={place: result.row for place, result in results.items()},
                demonstration=any(result.demonstration for result in results.values()),
            )
        )
    return named


def _describe(row: Row, keys: Sequence[str]) -> str:
    """What a row has in some columns: a variant and a backbone stand for themselves."""
    words = []
    for key in keys:
        if key == "variant":
            words.append(row[key] or "defaults")
        elif key == "backbone":
            words.append(row[key])
        elif row[key] not in (None, ""):
            words.append(f"{names.COLUMNS[key].lower()} {row[key]}")
    return ", ".join(words)


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
