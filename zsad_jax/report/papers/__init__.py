"""The papers' tables with our results."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zsad_jax.data.protocols import DOMAIN_MEANS
from zsad_jax.report import names
from zsad_jax.report.papers.sheets import GAIN, TITLES, choose_papers, make_sheets
from zsad_jax.report.papers.side_by_side import OURS, make_gain_table, make_table
from zsad_jax.report.papers.workdirs import Ours, columns_of, read_workdirs
from zsad_jax.report.published import paper_of
from zsad_jax.report.rows import MEAN, Row
from zsad_jax.report.run_tables import make_tables
from zsad_jax.report.tables import Table

__all__ = ["Ours", "PaperTables", "compare_papers", "compare_run", "find_missing", "read_workdirs"]


class PaperTables(NamedTuple):
    """A paper's key, or a heading, its title, its tables with our results, and all datasets in them."""

    paper: str
    title: str
    tables: Sequence[Table]
    datasets: Sequence[str]


def compare_papers(
    ours: Sequence[Ours],
    *,
    paper: str | None = None,
    table: str | None = None,
    everything: bool = False,
) -> list[PaperTables]:
    """Makes the tables of one paper or all with our columns; `everything` includes ablations and variants.

    `table` is the number of one table, "poster" or "gain"; by default those of main results, and the gain. An
    unknown paper or table raises `UserError`. Our results on other datasets follow the tables of all papers.
    """
    made = []
    for key in choose_papers(paper, table):
        sheets = list(make_sheets(key, table=table, everything=everything))
        tables = [make_table(sheet, ours) for sheet in sheets]
        if table in (None, GAIN):
            main = [sheet for sheet in make_sheets(key) if not sheet.by_category]
            # After the tables of datasets, before those of categories.
            position = sum(sheet.main and not sheet.by_category for sheet in sheets)
            tables.insert(position, make_gain_table(key, main, ours))
            sheets = sheets or main
        datasets = dict.fromkeys(place.dataset for sheet in sheets for place in sheet.places)
        shown = [dataset for dataset in datasets if dataset not in DOMAIN_MEANS]
        if tables:
            made.append(PaperTables(key, TITLES[key], tables, shown))
    covered = {dataset for one in made for dataset in one.datasets}
    own = {dataset for one in ours for dataset, _ in one.rows}
    if own - covered and paper is None and table is None:
        # Without any of our results, the papers' tables would only hide the others.
        made = [*(made if own & covered else ()), _on_other_datasets(ours, own - covered)]
    return made


def _on_other_datasets(ours: Sequence[Ours], datasets: Collection[str]) -> PaperTables:
    """Makes the tables of our columns on datasets that no paper has."""
    tables: list[Table] = []
    for one in ours:
        rows = [row for (dataset, _), row in one.rows.items() if dataset in datasets]
        keys = (("method", one.method), ("setting", one.setting), ("source", OURS))
        for table in make_tables(rows) if rows else ():
            title = f"{one.name}: {table.title}"
            tables.append(dataclasses.replace(table, title=title, keys=keys))
    title = "Results on datasets that are not in the papers' tables."
    return PaperTables("Other datasets", title, tables, sorted(datasets))


def compare_run(rows: Sequence[Row], run: Mapping[str, Any] | None = None) -> list[Table]:
    """Makes the main tables of the methods' papers, for the datasets in results.json, with notes of run.json.

    Methods without a paper here are compared with the first that prints them.
    """
    papers: dict[str, list[Row]] = {}
    for row in rows:
        if paper := paper_of(row["method"]):
            papers.setdefault(paper, []).append(row)
    tables = []
    for paper, members in papers.items():
        ours, datasets = columns_of(members, run), {row["dataset"] for row in members}
        for sheet in make_sheets(paper):
            # Rows of datasets that were run, and of means all of whose members were.
            places = [place for place in sheet.places if datasets.issuperset(sheet.members(place))]
            if places and not sheet.by_category:
                shown = [one for one in ours if any(place in one.rows for place in places)]
                tables.append(make_table(sheet.limited_to(places), shown))
    return tables


def find_missing(ours: Iterable[Ours], papers: Iterable[PaperTables]) -> list[str]:
    """Returns a sentence for each of our columns that lacks datasets of the papers."""
    wanted = dict.fromkeys(key for one in papers if one.paper in TITLES for key in one.datasets)
    found = []
    for one in ours:
        missing = [names.dataset_name(key) for key in wanted if (key, MEAN) not in one.rows]
        if missing:
            found.append(f"{one.name} was not run on {', '.join(missing)}.")
    return found
