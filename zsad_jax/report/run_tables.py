"""The tables of one run: datasets, categories and comparisons, with the papers' numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.protocols import DOMAIN_MEANS
from zsad_jax.metrics import AUPRO_200STEP, Note
from zsad_jax.report import names, wording
from zsad_jax.report.compare import IMAGES, KINDS, Deviation, find_deviations, words_on
from zsad_jax.report.published import PublishedNumber, mean_members, published_numbers
from zsad_jax.report.rows import (
    COUNT_COLUMNS,
    IDENTITY_COLUMNS,
    MEAN,
    RESULT_COLUMNS,
    STD_OF,
    Row,
    spread_over_seeds,
)
from zsad_jax.report.tables import (
    DOUBT,
    MAIN_RESULT,
    PAPER,
    PAPER_METRIC,
    Cell,
    Compared,
    Keys,
    Line,
    Notes,
    Table,
    metric_column,
    percent,
)
from zsad_jax.utils.text_table import csv_text

COUNTS = "Images (anomalous)"


def make_tables(
    rows: Sequence[Row],
    comparisons: Sequence[Row] = (),
    *,
    notes: Notes | None = None,
    run: Mapping[str, Any] | None = None,
) -> list[Table]:
    """Makes every table of a run: datasets, categories of each dataset, comparisons of each dataset.

    The arguments are fields of a `Report`; notes become footnotes.
    """
    notes = notes or {}
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    tables = [
        category_table(dataset, rows, notes, run)
        for dataset in datasets
        if sum(row["dataset"] == dataset for row in rows) > 2  # else it repeats the dataset's line
    ]
    if len(datasets) > 1 or not tables:
        tables.insert(0, dataset_table(rows, notes, run))
    points = wording.swept_points(run or {})
    swept = [row for row in comparisons if row["variant"] in points]
    others = [row for row in comparisons if row["variant"] not in points]
    for group, of in ((others, {}), (swept, points)):
        for dataset in dict.fromkeys(row["dataset"] for row in group):
            tables.append(comparison_table(dataset, rows, group, notes, of))
    return tables


def dataset_table(rows: Sequence[Row], notes: Notes, run: Mapping[str, Any] | None = None) -> Table:
    """Makes a table of the means of datasets, and the means over the datasets of each domain.

    A domain's mean is compared with the paper's only if it covers the same datasets. If no domain has
    two datasets, the mean is over all of them.
    """
    results = _Results(rows, notes, find_deviations(rows, run))
    means = [row for row in rows if row["category"] == MEAN]
    metrics = _metrics_to_show(means)
    lines = []
    for row in means:
        remarks, members = results.notes_on(row), results.categories(row)
        # Such a dataset has no table of categories, where the notes would be shown otherwise.
        if len(members) == 1:
            remarks += results.notes_on(members[0])
        cells = results.cells(row, metrics)
        words = [*wording.sentences(remarks), *results.reasons([row], cells)]
        labels = (names.dataset_name(row["dataset"]), _counts(row))
        lines.append(Line(labels, cells, tuple(words), keys=_keys(row)))
    known = [row for row in means if row["dataset"] in DATASETS]
    summaries = {}
    for mean, domain in DOMAIN_MEANS.items():
        members = [row for row in known if DATASETS[row["dataset"]].domain == domain]
        if len(members) > 1:
            summaries[mean] = members
    # The user's own folders belong to no domain, and a mean of one dataset says nothing new.
    if not summaries and len(means) > 1:
        summaries = {"": means}
    for mean, members in summaries.items():
        cells = tuple(results.mean_cell(mean, members, metric) for metric in metrics)
        absent = wording.sentences(wording.absence_notes(members, "datasets"))
        words = [*results.reasons(members, cells), *absent]
        label = names.dataset_name(mean) if mean else "Mean over datasets"
        lines.append(Line((label, ""), cells, tuple(words), summary=True))
    return _table("Datasets", ("Dataset", COUNTS), metrics, lines, means)


def category_table(
    dataset: str, rows: Sequence[Row], notes: Notes, run: Mapping[str, Any] | None = None
) -> Table:
    """Makes a table of the categories of a dataset and their mean.

    If images of the dataset are missing, no category has a difference: it is not known from which they are.
    """
    rows = [row for row in rows if row["dataset"] == dataset]
    rows.sort(key=lambda row: row["category"] == MEAN)
    results = _Results(rows, notes, find_deviations(rows, run))
    metrics = _metrics_to_show(rows)
    lines = []
    for row in rows:
        summary = row["category"] == MEAN
        words, cells = wording.sentences(results.notes_on(row)), results.cells(row, metrics)
        # Reasons on the whole dataset are repeated only where they replace a difference.
        if summary or any(cell.apart for cell in cells):
            words += results.reasons([row], cells)
        labels = ("Mean" if summary else names.category_name(row["category"]), _counts(row))
        lines.append(Line(labels, cells, tuple(words), summary, _keys(row)))
    return _table(names.dataset_name(dataset), ("Category", COUNTS), metrics, lines, rows)


def comparison_table(
    dataset: str,
    rows: Sequence[Row],
    comparisons: Sequence[Row],
    notes: Notes,
    points: wording.Points,
) -> Table:
    """Makes a table of a dataset's main result and its comparisons, with differences to the main result.

    If they are the points of a sweep, its keys have a column each.
    """
    main, others = compared_rows(dataset, rows, comparisons)
    metrics, results = _metrics_to_show(main + others), _Results(rows, notes, ())
    varied = [key for key in names.COLUMNS if len({str(row.get(key)) for row in main + others}) > 1]
    varied = [key for key in varied if key != "variant"] if points else varied
    words = tuple(wording.sentences(results.notes_on(main[0]) if main else ()))
    head = tuple(wording.short_keys(points).values()) or ("Setting",)
    lines = []
    for row in main:
        labels = ("Main result", *[""] * (len(head) - 1))
        setting = f"Main result: {wording.describe_setting(row, varied)}."
        known = (setting,) * bool(varied or not points)
        lines.append(Line(labels, results.cells(row, metrics, {}), (*known, *words)))
    for row in others:
        # Comparisons without a main result have no differences.
        against, point = main[0] if main else dict.fromkeys(row), points.get(row["variant"], {})
        differs = [key for key in varied if row.get(key) != against.get(key)]
        setting = wording.describe_setting(row, differs)
        labels = tuple(map(wording.describe_value, point.values())) or (setting,)
        same = all(row[metric] == against[metric] for metric in PAPER_METRIC)
        footnotes = (*["Same as the main result."] * bool(point and same), *words)
        lines.append(Line(labels, results.cells(row, metrics, against), footnotes))
    title = f"{names.dataset_name(dataset)}: {'ablation' if points else 'comparisons'}"
    return _table(title, head, metrics, lines, main + others, MAIN_RESULT)


def compared_rows(
    dataset: str, rows: Iterable[Row], comparisons: Iterable[Row]
) -> tuple[list[Row], list[Row]]:
    """Returns the means of a dataset of the main result and of its comparisons.

    Of a comparison's image scores, there is that of the main result if it is among them.
    """
    main, others = (
        [row for row in group if (row["dataset"], row["category"]) == (dataset, MEAN)]
        for group in (rows, comparisons)
    )
    for row in main:
        others = _with_score(others, row["image_score"])
    return main, others


def _with_score(rows: Sequence[Row], score: str | None) -> list[Row]:
    """Drops rows that differ only by their image score from one with this score."""

    def setting(row: Row) -> tuple[str, ...]:
        return tuple(str(row.get(key)) for key in IDENTITY_COLUMNS if key != "image_score")

    known = {setting(row) for row in rows if row["image_score"] == score}
    return [row for row in rows if row["image_score"] == score or setting(row) not in known]


def results_csv(
    rows: Sequence[Row],
    comparisons: Sequence[Row] = (),
    notes: Notes | None = None,
    *,
    remark: str = "",
    run: Mapping[str, Any] | None = None,
) -> str:
    """Writes all rows as CSV: what was run, then ours, the paper's and the difference, in percent.

    The column "table" is "main" or "comparison"; an undefined number is an empty field; `remark`
    precedes the notes of every row.
    """
    several = any("seeds" in row for row in (*rows, *comparisons))
    given = {*RESULT_COLUMNS}.union(*rows, *comparisons)
    identity = [name for name in (*IDENTITY_COLUMNS, "seeds", *COUNT_COLUMNS) if name in given]
    heads = ["table", *identity]
    for metric, paper in PAPER_METRIC.items():
        heads += [metric, *[STD_OF[metric]] * several]
        heads += [f"{metric}_paper", f"{metric}_difference"] if paper else []
    results = _Results(rows, notes or {}, find_deviations(rows, run))
    lines = []
    for kind, group in (("main", rows), ("comparison", comparisons)):
        for row in group:
            values = [kind, *map(row.get, identity)]
            cells = results.cells(row, PAPER_METRIC, None if kind == "main" else {})
            for metric, cell in zip(PAPER_METRIC, cells, strict=True):
                values += [cell.value, *[cell.spread] * several]
                if PAPER_METRIC[metric]:
                    values += [cell.paper.percent if cell.paper else None, cell.difference]
            remarks = wording.sentences(results.notes_on(row))
            words = [remark, *remarks, *results.reasons([row], cells)]
            lines.append([*values, " ".join(filter(None, words))])
    return csv_text([[*heads, "notes"], *lines])


class _Results(NamedTuple):
    """Rows of results.json, notes on them, and why they cannot be compared with the papers' numbers."""

    rows: Sequence[Row]
    notes: Notes
    deviations: Sequence[Deviation]

    def categories(self, row: Row) -> list[Row]:
        """Returns the rows of the categories of a row's dataset."""
        return [r for r in self.rows if r["dataset"] == row["dataset"] and r["category"] != MEAN]

    def notes_on(self, row: Row) -> list[Note]:
        """Returns the notes on a row; for a mean also on the undefined values that it excludes."""
        notes = list(self.notes.get((row["dataset"], row["category"]), ()))
        if row["category"] == MEAN:
            notes += wording.absence_notes(self.categories(row), "categories")
        return notes

    def cells(
        self, row: Row, metrics: Iterable[str], main: Mapping[str, Any] | None = None
    ) -> tuple[Cell, ...]:
        """Returns a row's numbers with the paper's; with a main result ({}: none), with that as reference."""
        if main is not None:
            made = ((self._cell([row], metric, {}), main.get(metric)) for metric in metrics)
            return tuple(cell._replace(reference=percent(of)) for cell, of in made)
        numbers = published_numbers(row["method"], row["dataset"], row["category"])
        return tuple(self._cell([row], metric, numbers) for metric in metrics)

    def mean_cell(self, mean: str, members: Sequence[Row], metric: str) -> Cell:
        """Returns a mean over datasets, with the paper's if that covers the same ones."""
        defined = [row for row in members if row[metric] is not None]
        methods = {row["method"] for row in members}
        numbers = published_numbers(members[0]["method"], mean) if len(methods) == 1 else {}
        number = numbers.get(PAPER_METRIC[metric] or "")
        if number:
            theirs = mean_members(number.paper, DOMAIN_MEANS[mean], number.metric, number.table)
            # A mean over other datasets is another quantity.
            if {row["dataset"] for row in defined} != set(theirs):
                numbers = {}
        return self._cell(defined, metric, numbers)

    def reasons(self, rows: Sequence[Row], cells: Iterable[Cell]) -> list[str]:
        """Returns words on datasets of other images; where cells have the paper's numbers, on all."""
        kinds = KINDS if any(cell.paper for cell in cells) else IMAGES
        return words_on(self.deviations, [row["dataset"] for row in rows], kinds=kinds)

    def _cell(
        self, rows: Sequence[Row], metric: str, numbers: Mapping[str, PublishedNumber]
    ) -> Cell:
        number = numbers.get(PAPER_METRIC[metric] or "")
        apart = words_on(self.deviations, [row["dataset"] for row in rows], metric)
        defined = [row[metric] for row in rows if row[metric] is not None]
        mean = percent(float(np.mean(defined))) if defined else None
        spread = percent(spread_over_seeds(rows, metric))
        return Cell(mean, number, apart=bool(number and apart), spread=spread)


def _metrics_to_show(rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns all metrics, but the papers' AUPRO only if it was computed."""
    computed = any(row[AUPRO_200STEP] is not None for row in rows)
    return tuple(metric for metric in PAPER_METRIC if computed or metric != AUPRO_200STEP)


def _table(
    title: str,
    head: tuple[str, ...],
    metrics: tuple[str, ...],
    lines: Sequence[Line],
    rows: Sequence[Row],
    compared: Compared = PAPER,
) -> Table:
    """Makes a table with a footnote on every suspicious number of the paper, and on the seeds of its rows."""
    several = dict.fromkeys(wording.describe_seeds(row) for row in rows if "seeds" in row)
    seeds = [f"Mean ± standard deviation over {' or '.join(several)}."] * bool(several)
    doubts = (
        f"{DOUBT} {line.labels[0]}, {names.METRICS[metric]}: {cell.paper.doubt}."
        for line in lines
        for metric, cell in zip(metrics, line.cells, strict=True)
        if cell.paper and cell.paper.doubt
    )
    return Table(
        title=title,
        head=head,
        columns=tuple(map(metric_column, metrics)),
        lines=tuple(lines),
        compared=compared,
        remarks=(*doubts, *seeds),
    )


def _keys(row: Row) -> Keys:
    return ("dataset", row["dataset"]), ("category", row["category"])


def _counts(row: Row) -> str:
    return f"{row['n_images']} ({row['n_anomalous']})"
