"""The tables of one run: datasets, categories and comparisons, the paper's numbers beside ours."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zsad_jax.data.protocols import DATASETS
from zsad_jax.metrics import Note
from zsad_jax.report import formats, names, wording
from zsad_jax.report.coverage import SETTING, Partial, find_partial, is_partial, words_on
from zsad_jax.report.published import DOMAIN_MEANS, PublishedNumber, mean_members, published_numbers
from zsad_jax.report.rows import COUNT_COLUMNS, IDENTITY_COLUMNS, MEAN, Row
from zsad_jax.report.tables import (
    DOUBT,
    MAIN_RESULT,
    PAPER,
    PAPER_METRIC,
    Cell,
    Footnotes,
    Line,
    Notes,
    Table,
    metric_column,
    percent,
)
from zsad_jax.report.training import is_usual, tell_training

COUNTS = "Images (anomalous)"


def make_tables(
    rows: Sequence[Row],
    comparisons: Sequence[Row] = (),
    *,
    notes: Notes | None = None,
    run: Mapping[str, Any] | None = None,
) -> list[Table]:
    """Every table of a run: datasets, categories of each dataset, comparisons of each dataset.

    Args:
      rows: results.json.
      comparisons: comparisons.json.
      notes: remarks by (dataset, category), shown as footnotes.
      run: run.json.
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
    for dataset in dict.fromkeys(row["dataset"] for row in comparisons):
        tables.append(comparison_table(dataset, rows, comparisons, notes))
    return tables


def dataset_table(rows: Sequence[Row], notes: Notes, run: Mapping[str, Any] | None = None) -> Table:
    """The mean of each dataset, and the means over the datasets of a domain.

    A domain's mean stands beside the paper's only where it covers the same datasets. Where no domain has
    two datasets the mean is over all of them.
    """
    footnotes, partial = Footnotes(), find_partial(rows, run)
    means = [row for row in rows if row["category"] == MEAN]
    metrics = _metrics_to_show(means)
    lines = []
    for row in means:
        said, members = _notes_on(row, rows, notes), _categories(row, rows)
        if len(members) == 1:
            said += _notes_on(members[0], rows, notes)
        cells = _cells(row, metrics, partial)
        words = [*wording.sentences(said), *_told(partial, [row], cells)]
        labels = (names.dataset_name(row["dataset"]), _counts(row))
        lines.append(Line(labels, cells, footnotes.marks(words)))
    domains = {mean: _of_domain(means, domain) for mean, domain in DOMAIN_MEANS.items()}
    domains = {mean: members for mean, members in domains.items() if len(members) > 1}
    for mean, members in domains.items():
        cells = tuple(_domain_cell(mean, members, metric, partial) for metric in metrics)
        marks = _mean_marks(footnotes, partial, members, cells)
        lines.append(Line((names.dataset_name(mean), ""), cells, marks, summary=True))
    if len(means) > 1 and not domains:
        cells = tuple(Cell(_mean_percent(means, metric)) for metric in metrics)
        marks = _mean_marks(footnotes, partial, means, cells)
        lines.append(Line(("Mean over datasets", ""), cells, marks, summary=True))
    return _finish("Datasets", ("Dataset", COUNTS), metrics, lines, footnotes)


def category_table(
    dataset: str,
    rows: Sequence[Row],
    notes: Notes,
    run: Mapping[str, Any] | None = None,
) -> Table:
    """The categories of a dataset, and their mean.

    Which categories lack images of a dataset that does is not known, so none has a difference then.
    """
    footnotes = Footnotes()
    chosen = [row for row in rows if row["dataset"] == dataset]
    partial = find_partial(chosen, run)
    members = [row for row in chosen if row["category"] != MEAN]
    metrics = _metrics_to_show(chosen)
    lines = []
    for row in members + [row for row in chosen if row["category"] == MEAN]:
        summary = row["category"] == MEAN
        words = wording.sentences(_notes_on(row, rows, notes))
        cells = _cells(row, metrics, partial)
        if summary or any(cell.apart for cell in cells):
            words += _told(partial, [row], cells)
        labels = ("Mean" if summary else names.category_name(row["category"]), _counts(row))
        lines.append(Line(labels, cells, footnotes.marks(words), summary))
    return _finish(names.dataset_name(dataset), ("Category", COUNTS), metrics, lines, footnotes)


def comparison_table(
    dataset: str, rows: Sequence[Row], comparisons: Sequence[Row], notes: Notes
) -> Table:
    """The main result of a dataset, and what it is compared with; differences are to the main result."""
    footnotes = Footnotes()
    main, others = (
        [row for row in group if (row["dataset"], row["category"]) == (dataset, MEAN)]
        for group in (rows, comparisons)
    )
    metrics = _metrics_to_show(main + others)
    varied = [key for key in names.COLUMNS if len({str(row[key]) for row in main + others}) > 1]
    marks = footnotes.marks(wording.sentences(_notes_on(main[0], rows, notes) if main else ()))
    lines = []
    for row in main:
        cells = tuple(Cell(percent(row[metric])) for metric in metrics)
        label = f"Main result: {wording.describe_setting(row, varied)}"
        lines.append(Line((label,), cells, marks))
    for row in others:
        against = main[0] if main else dict.fromkeys(row)
        cells = tuple(Cell(percent(row[m]), reference=percent(against[m])) for m in metrics)
        differs = [key for key in varied if row[key] != against[key]]
        lines.append(Line((wording.describe_setting(row, differs),), cells, marks))
    lines += _seed_lines(others, metrics)
    return Table(
        title=f"{names.dataset_name(dataset)}: comparisons",
        head=("Setting",),
        columns=tuple(map(metric_column, metrics)),
        lines=tuple(lines),
        compared=MAIN_RESULT,
        footnotes=tuple(footnotes.words),
    )


def results_csv(
    rows: Sequence[Row],
    comparisons: Sequence[Row] = (),
    notes: Notes | None = None,
    *,
    remark: str = "",
    run: Mapping[str, Any] | None = None,
) -> str:
    """All rows as CSV: what was run, then ours, the paper's and the difference, in percent.

    Column "table" is "main" or "comparison"; an undefined number is an empty field; `remark` goes
    before the notes of every row.
    """
    heads = ["table", *IDENTITY_COLUMNS, *COUNT_COLUMNS]
    for metric, paper in PAPER_METRIC.items():
        heads += [metric, f"{metric}_paper", f"{metric}_difference"] if paper else [metric]
    partial = find_partial(rows, run)
    lines = []
    for kind, group in (("main", rows), ("comparison", comparisons)):
        for row in group:
            values = [kind, *(row[key] for key in IDENTITY_COLUMNS + COUNT_COLUMNS)]
            cells = _cells(row, PAPER_METRIC, partial, kind == "main")
            for metric, cell in zip(PAPER_METRIC, cells, strict=True):
                values.append(cell.value)
                if PAPER_METRIC[metric]:
                    values += [cell.paper.percent if cell.paper else None, cell.difference]
            said = wording.sentences(_notes_on(row, rows, notes or {}))
            words = [remark, *said, *_told(partial, [row], cells)]
            lines.append([*values, " ".join(filter(None, words))])
    return formats.csv_text([*heads, "notes"], lines)


def _cells(
    row: Row, metrics: Iterable[str], partial: Partial, with_paper: bool = True
) -> tuple[Cell, ...]:
    """A row's numbers beside the paper's; without difference where they are of something else."""
    paper = published_numbers(row["method"], row["dataset"], row["category"]) if with_paper else {}
    return tuple(_beside(row, metric, paper, partial) for metric in metrics)


def _beside(row: Row, metric: str, paper: Mapping[str, PublishedNumber], partial: Partial) -> Cell:
    number = paper.get(PAPER_METRIC[metric] or "")
    apart = number is not None and _is_apart(row, metric, partial)
    return Cell(percent(row[metric]), number, apart=apart)


def _is_apart(row: Row, metric: str, partial: Partial) -> bool:
    """Whether a number is of other images, masks or settings than the paper's."""
    return is_partial(partial, row["dataset"], metric) or not is_usual(row)


def _domain_cell(mean: str, members: Sequence[Row], metric: str, partial: Partial) -> Cell:
    """The mean over the datasets of a domain, beside the paper's if that covers the same ones."""
    value = _mean_percent(members, metric)
    defined = [row for row in members if row[metric] is not None]
    methods = {row["method"] for row in members}
    numbers = published_numbers(members[0]["method"], mean) if len(methods) == 1 else {}
    number = numbers.get(PAPER_METRIC[metric] or "")
    if number is None:
        return Cell(value)
    theirs = mean_members(number.paper, DOMAIN_MEANS[mean], number.metric, number.table)
    if {row["dataset"] for row in defined} != set(theirs):
        return Cell(value)
    apart = any(_is_apart(row, metric, partial) for row in defined)
    return Cell(value, number, apart=apart)


def _told(partial: Partial, rows: Sequence[Row], cells: Iterable[Cell]) -> list[str]:
    """Returns sentences on datasets of other images; where cells have the paper's numbers, also on settings."""
    words = [told for row in rows for told in words_on(partial, row["dataset"])]
    if any(cell.paper for cell in cells):
        words += [one for row in rows for one in partial.get((row["dataset"], SETTING), ())]
        words += tell_training(rows)
    return words


def _of_domain(means: Sequence[Row], domain: str) -> list[Row]:
    known = [row for row in means if row["dataset"] in DATASETS]
    return [row for row in known if DATASETS[row["dataset"]].domain == domain]


def _metrics_to_show(rows: Sequence[Row]) -> tuple[str, ...]:
    """All metrics, less the paper's AUPRO where it was not asked for."""
    asked = any(row["pixel_aupro_200step"] is not None for row in rows)
    return tuple(metric for metric in PAPER_METRIC if asked or metric != "pixel_aupro_200step")


def _mean_percent(rows: Sequence[Row], metric: str) -> float | None:
    defined = [row[metric] for row in rows if row[metric] is not None]
    return percent(float(np.mean(defined))) if defined else None


def _categories(row: Row, rows: Iterable[Row]) -> list[Row]:
    """Returns the rows of the categories of a row's dataset."""
    return [r for r in rows if r["dataset"] == row["dataset"] and r["category"] != MEAN]


def _notes_on(row: Row, rows: Iterable[Row], notes: Notes) -> list[Note]:
    """Returns the notes on a row; for a dataset's mean also on the undefined values that it excludes."""
    said = list(notes.get((row["dataset"], row["category"]), ()))
    if row["category"] == MEAN:
        said += wording.absence_notes(_categories(row, rows), "categories")
    return said


def _mean_marks(
    footnotes: Footnotes, partial: Partial, members: Sequence[Row], cells: Sequence[Cell]
) -> tuple[int, ...]:
    """Returns the footnotes of a mean over datasets."""
    absent = wording.sentences(wording.absence_notes(members, "datasets"))
    return footnotes.marks([*_told(partial, members, cells), *absent])


def _seed_lines(rows: Sequence[Row], metrics: Sequence[str]) -> list[Line]:
    """Mean and standard deviation over rows that differ by nothing but their seed."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        same = tuple(str(row[key]) for key in IDENTITY_COLUMNS if key not in ("seed", "checkpoint"))
        groups.setdefault(same, []).append(row)
    lines = []
    for group in groups.values():
        if len({row["seed"] for row in group}) < 2:
            continue
        cells = []
        for metric in metrics:
            values = [100 * row[metric] for row in group if row[metric] is not None]
            spread = round(float(np.std(values, ddof=1)), 1) if len(values) > 1 else None
            cells.append(Cell(_mean_percent(group, metric), spread=spread))
        seeds = ", ".join(str(row["seed"]) for row in group)
        lines.append(
            Line((f"Mean ± standard deviation over seeds {seeds}",), tuple(cells), summary=True)
        )
    return lines


def _finish(
    title: str,
    head: tuple[str, ...],
    metrics: tuple[str, ...],
    lines: list[Line],
    footnotes: Footnotes,
) -> Table:
    """Adds a footnote on every number of the paper that its source marks as suspicious."""
    for line in lines:
        for metric, cell in zip(metrics, line.cells, strict=True):
            if cell.paper and cell.paper.suspicious:
                words = f"{DOUBT} {line.labels[0]}, {names.METRICS[metric]}: {cell.paper.doubt}."
                footnotes.marks([words])
    columns = tuple(map(metric_column, metrics))
    return Table(
        title=title,
        head=head,
        columns=columns,
        lines=tuple(lines),
        compared=PAPER,
        footnotes=tuple(footnotes.words),
    )


def _counts(row: Row) -> str:
    return f"{row['n_images']} ({row['n_anomalous']})"
