"""Tables of results, the paper's numbers beside ours: first as data, then as markdown or CSV."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.report import names, wording
from zsad_jax.report.published import PublishedNumber, published_numbers
from zsad_jax.report.rows import COUNT_COLUMNS, IDENTITY_COLUMNS, MEAN, Row

Notes = Mapping[tuple[str, str], Sequence[str]]  # words by (dataset, category)

# Our columns, and the paper's metric that each may stand beside: papers take AUPRO from 200 thresholds.
PAPER_METRIC = {
    "image_auroc": "image_auroc",
    "image_ap": "image_ap",
    "image_f1max": "image_f1max",
    "pixel_auroc": "pixel_auroc",
    "pixel_ap": "pixel_ap",
    "pixel_f1max": "pixel_f1max",
    "pixel_aupro": None,
    "pixel_aupro_200step": "pixel_aupro",
}
PAPER, MAIN_RESULT = "paper", "main result"  # what numbers are held against
COUNTS = "Images (anomalous)"
UNDEFINED = "–"
DOUBT = "†"
MINUS = "−"


class Cell(NamedTuple):
    """A number and what it is held against, in percent.

    Attributes:
      ours: rounded to one decimal, as shown; None when undefined.
      paper: what the paper prints.
      reference: what `difference` is taken against when no paper's number is.
      spread: standard deviation over seeds.
    """

    ours: float | None
    paper: PublishedNumber | None = None
    reference: float | None = None
    spread: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's (or the reference's), of the numbers as shown."""
        other = self.paper.percent if self.paper else self.reference
        return None if self.ours is None or other is None else round(self.ours - other, 1)


class Line(NamedTuple):
    """A row of a table: its labels, its cells, and the numbers of its footnotes."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    marks: tuple[int, ...] = ()
    summary: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as data, the same for every format.

    Attributes:
      head: names of the label columns.
      metrics: keys of the metric columns.
      compared: what the numbers are held against, `PAPER` or `MAIN_RESULT`.
      footnotes: numbered from 1.
    """

    title: str
    head: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    compared: str
    footnotes: tuple[str, ...] = ()


class _Footnotes:
    """Words gathered while a table is made; the same words get the same number."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def marks(self, words: Iterable[str]) -> tuple[int, ...]:
        unique = wording.readable(dict.fromkeys(words))
        self.words += [word for word in unique if word not in self.words]
        return tuple(self.words.index(word) + 1 for word in unique)


def make_tables(
    rows: Sequence[Row], comparisons: Sequence[Row] = (), notes: Notes | None = None
) -> list[Table]:
    """Every table of a report: datasets, categories of each dataset, comparisons of each dataset.

    Args:
      rows: results.json.
      comparisons: comparisons.json.
      notes: words on (dataset, category) that become footnotes.
    """
    notes = notes or {}
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    tables = [
        category_table(dataset, rows, notes)
        for dataset in datasets
        if sum(row["dataset"] == dataset for row in rows) > 2  # else it repeats the dataset's line
    ]
    if len(datasets) > 1 or not tables:
        tables.insert(0, dataset_table(rows, notes))
    for dataset in dict.fromkeys(row["dataset"] for row in comparisons):
        tables.append(comparison_table(dataset, rows, comparisons, notes))
    return tables


def dataset_table(rows: Sequence[Row], notes: Notes) -> Table:
    """The mean of each dataset, and the mean over datasets."""
    footnotes = _Footnotes()
    means = [row for row in rows if row["category"] == MEAN]
    metrics = _metrics_to_show(means)
    lines = []
    for row in means:
        members = [r for r in rows if r["dataset"] == row["dataset"] and r["category"] != MEAN]
        words = _mean_notes(row["dataset"], members, notes)
        if len(members) == 1:
            words += notes.get((row["dataset"], members[0]["category"]), ())
        labels = (names.dataset_name(row["dataset"]), _counts(row))
        lines.append(Line(labels, _cells(row, metrics), footnotes.marks(words)))
    if len(means) > 1:
        cells = tuple(Cell(_mean_percent(means, metric)) for metric in metrics)
        marks = footnotes.marks(wording.words_on_members(means, "datasets"))
        lines.append(Line(("Mean over datasets", ""), cells, marks, summary=True))
    return _finish("Datasets", ("Dataset", COUNTS), metrics, lines, footnotes)


def category_table(dataset: str, rows: Sequence[Row], notes: Notes) -> Table:
    """The categories of a dataset, and their mean."""
    footnotes = _Footnotes()
    chosen = [row for row in rows if row["dataset"] == dataset]
    members = [row for row in chosen if row["category"] != MEAN]
    metrics = _metrics_to_show(chosen)
    lines = []
    for row in members + [row for row in chosen if row["category"] == MEAN]:
        summary = row["category"] == MEAN
        words = (
            _mean_notes(dataset, members, notes)
            if summary
            else list(notes.get((dataset, row["category"]), ()))
        )
        labels = ("Mean" if summary else names.category_name(row["category"]), _counts(row))
        lines.append(Line(labels, _cells(row, metrics), footnotes.marks(words), summary))
    return _finish(names.dataset_name(dataset), ("Category", COUNTS), metrics, lines, footnotes)


def comparison_table(
    dataset: str, rows: Sequence[Row], comparisons: Sequence[Row], notes: Notes
) -> Table:
    """The main result of a dataset, and what it is compared with; differences are to the main result."""
    footnotes = _Footnotes()
    main, others = (
        [row for row in group if (row["dataset"], row["category"]) == (dataset, MEAN)]
        for group in (rows, comparisons)
    )
    metrics = _metrics_to_show(main + others)
    varied = [key for key in names.COLUMNS if len({str(row[key]) for row in main + others}) > 1]
    words = [*notes.get((dataset, MEAN), ())]
    lines = []
    for row in main:
        cells = tuple(Cell(percent(row[metric])) for metric in metrics)
        label = f"Main result: {wording.describe_setting(row, varied)}"
        lines.append(Line((label,), cells, footnotes.marks(words)))
    for row in others:
        against = main[0] if main else dict.fromkeys(row)
        cells = tuple(Cell(percent(row[m]), reference=percent(against[m])) for m in metrics)
        differs = [key for key in varied if row[key] != against[key]]
        lines.append(Line((wording.describe_setting(row, differs),), cells, footnotes.marks(words)))
    lines += _seed_lines(others, metrics)
    title = f"{names.dataset_name(dataset)}: comparisons"
    return Table(title, ("Setting",), metrics, tuple(lines), MAIN_RESULT, tuple(footnotes.words))


def to_markdown(table: Table) -> str:
    """A table as GitHub-flavoured markdown, with its footnotes."""
    heads = [*table.head, *(names.METRICS[metric] for metric in table.metrics)]
    text = [f"### {table.title}", "", _markdown_row(heads)]
    text.append("|" + " --- |" * len(table.head) + " ---: |" * len(table.metrics))
    for line in table.lines:
        labels = [label.replace("|", "\\|") for label in line.labels]
        labels[0] += "".join(f" [{mark}]" for mark in line.marks)
        entries = [*labels, *(_cell_text(cell) for cell in line.cells)]
        text.append(_markdown_row([f"**{e}**" if line.summary and e else e for e in entries]))
    remarks = [f"[{number}] {words}" for number, words in enumerate(table.footnotes, 1)]
    if remarks:
        text += ["", *(f"{remark}  " for remark in remarks)]
    return "\n".join(text) + "\n"


def legend(compared: str) -> str:
    """How the cells of a table are to be read."""
    if compared == PAPER:
        return (
            "In percent: ours, and where the paper prints one, its number and ours less the paper's in"
            f" brackets. {UNDEFINED} is undefined for the data. {DOUBT} marks a printed number that does not"
            " fit with others. The papers' AUPRO comes from 200 thresholds, so it stands beside ours from"
            " 200 thresholds; the exact AUPRO has its own column."
        )
    return f"In percent; in brackets the difference to the {compared}. {UNDEFINED} is undefined for the data."


def to_csv(
    rows: Sequence[Row],
    comparisons: Sequence[Row] = (),
    notes: Notes | None = None,
    *,
    remark: str = "",
) -> str:
    """All rows as CSV: what was run, then ours, the paper's and the difference, in percent.

    Column "table" is "main" or "comparison"; an undefined number is an empty field; `remark` goes
    before the notes of every row.
    """
    heads = ["table", *IDENTITY_COLUMNS, *COUNT_COLUMNS]
    for metric, paper in PAPER_METRIC.items():
        heads += [metric, f"{metric}_paper", f"{metric}_difference"] if paper else [metric]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*heads, "notes"])
    for kind, group in (("main", rows), ("comparison", comparisons)):
        for row in group:
            values = [kind, *(row[key] for key in IDENTITY_COLUMNS + COUNT_COLUMNS)]
            for metric, cell in zip(
                PAPER_METRIC, _cells(row, PAPER_METRIC, kind == "main"), strict=True
            ):
                values.append(cell.ours)
                if PAPER_METRIC[metric]:
                    values += [cell.paper.percent if cell.paper else None, cell.difference]
            words = (notes or {}).get((row["dataset"], row["category"]), ())
            values.append(" ".join(word for word in (remark, *words) if word))
            writer.writerow(["" if value is None else value for value in values])
    return file.getvalue()


def percent(value: float | None) -> float | None:
    """A metric in [0, 1] as percent with one decimal; None stays None."""
    return None if value is None else round(100 * value, 1)


def signed(value: float) -> str:
    """A difference with its sign, the minus a true one."""
    return f"{value:+.1f}".replace("-", MINUS) if value else "±0.0"


def _cells(row: Row, metrics: Iterable[str], with_paper: bool = True) -> tuple[Cell, ...]:
    paper = published_numbers(row["method"], row["dataset"], row["category"]) if with_paper else {}
    return tuple(
        Cell(percent(row[metric]), paper.get(PAPER_METRIC[metric] or "")) for metric in metrics
    )


def _metrics_to_show(rows: Sequence[Row]) -> tuple[str, ...]:
    """All metrics, less the paper's AUPRO where it was not asked for."""
    asked = any(row["pixel_aupro_200step"] is not None for row in rows)
    return tuple(metric for metric in PAPER_METRIC if asked or metric != "pixel_aupro_200step")


def _mean_percent(rows: Sequence[Row], metric: str) -> float | None:
    defined = [row[metric] for row in rows if row[metric] is not None]
    return percent(float(np.mean(defined))) if defined else None


def _mean_notes(dataset: str, members: Sequence[Row], notes: Notes) -> list[str]:
    """The notes on a dataset's mean; without any, what its rows tell."""
    given = notes.get((dataset, MEAN), ())
    return list(given) or wording.words_on_members(members, "categories")


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
    footnotes: _Footnotes,
) -> Table:
    """Adds a footnote on every number of the paper that its source marks as suspicious."""
    for line in lines:
        for metric, cell in zip(metrics, line.cells, strict=True):
            if cell.paper and cell.paper.suspicious:
                footnotes.words.append(
                    f"{DOUBT} {line.labels[0]}, {names.METRICS[metric]}: {cell.paper.note}."
                )
    return Table(title, head, metrics, tuple(lines), PAPER, tuple(footnotes.words))


def _counts(row: Row) -> str:
    return f"{row['n_images']} ({row['n_anomalous']})"


def _cell_text(cell: Cell) -> str:
    ours = UNDEFINED if cell.ours is None else f"{cell.ours:.1f}"
    if cell.spread is not None:
        ours += f" ± {cell.spread:.1f}"
    beside = []
    if cell.paper:
        beside.append(f"{cell.paper.percent:.1f}{DOUBT if cell.paper.suspicious else ''}")
    if cell.difference is not None:
        beside.append(signed(cell.difference))
    return f"{ours} ({', '.join(beside)})" if beside else ours


def _markdown_row(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
