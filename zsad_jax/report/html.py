"""The contents of the HTML page of a report, as data for its template."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zsad_jax.evaluate import Case, DatasetScores
from zsad_jax.report import charts, formats, images, names, run_tables, tables, wording
from zsad_jax.report.base import Report
from zsad_jax.report.cases import group_cases, standing
from zsad_jax.report.papers import compare_run
from zsad_jax.report.rows import MEAN
from zsad_jax.utils.errors import plural
from zsad_jax.utils.images import ANOMALOUS, NORMAL, Scale, drawing, palette_stops

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADLINES = ("image_auroc", "pixel_auroc", "pixel_aupro")
PICTURES_IN_ALL = 120  # at some 35 kB each
PICTURES_OF_A_KIND = 6

Definitions = list[tuple[str, str]]  # names and words


class Tile(NamedTuple):
    """A number in large print."""

    name: str
    number: str
    words: str


class Chart(NamedTuple):
    """A chart as an SVG element, with its caption."""

    svg: str
    caption: str


class Thumbnail(NamedTuple):
    """A picture of a case and its caption; `source` is a data URI."""

    source: str
    category: str
    label: str
    score: str
    standing: str
    file_name: str


def render_page(report: Report) -> str:
    """Returns the report as one self-contained HTML document, below about 6 MB."""
    shown = run_tables.make_tables(
        report.rows, report.comparisons, notes=report.notes, run=report.run
    )
    training = functools.partial(charts.training_figure, report.history)
    return formats.render(
        "report.html",
        report=report,
        descriptions=dict.fromkeys(wording.describe(row) for row in report.rows),
        headlines=_headlines(report),
        own_tables=[one for one in shown if one.compared != tables.MAIN_RESULT],
        paper_tables=compare_run(report.rows, report.run),
        comparison_tables=[one for one in shown if one.compared == tables.MAIN_RESULT],
        score_charts=[
            (names.dataset_name(scores.dataset), _score_charts(scores)) for scores in report.scores
        ],
        palette=palette_stops(9),
        thumbnails=_thumbnails(report),
        training_charts=_charts({"Loss and its terms over the training steps": training}),
        skipped_and_issues=_skipped_and_issues(report),
        quantities=_quantities(report.run),
    )


def _headlines(report: Report) -> list[tuple[str, list[Tile]]]:
    """Returns the main numbers: of the only dataset, or the means over datasets."""
    table = run_tables.dataset_table(report.rows, {}, report.run)
    headlines = []
    for line in [line for line in table.lines if line.summary] or table.lines[-1:]:
        tiles = []
        for column, cell in zip(table.columns, line.cells, strict=True):
            if dict(column.keys)["metric"] in HEADLINES:
                words = f"paper {formats.reference(cell)}" if cell.paper else ""
                words += ", not comparable" if cell.apart else ""
                tiles.append(Tile(column.full, cell.number, words))
        headlines.append((line.labels[0], tiles))
    if headlines:
        images = sum(row["n_images"] for row in report.rows if row["category"] == MEAN)
        datasets = len({row["dataset"] for row in report.rows})
        headlines[-1][1].append(Tile("Images", f"{images:,}", plural(datasets, "dataset")))
    return headlines


def _score_charts(scores: DatasetScores) -> list[Chart]:
    name = names.dataset_name(scores.dataset)
    return _charts(
        {
            f"Histograms of the image scores of {name}, normal and anomalous images, by category": (
                functools.partial(charts.score_histogram, scores)
            ),
            f"ROC curves of the image scores of {name} by category, with the area below in percent": (
                functools.partial(charts.roc_figure, scores)
            ),
        }
    )


def _charts(wanted: Mapping[str, Callable[[], "Figure | None"]]) -> list[Chart]:
    """Draws charts, given by their captions; those without data or that cannot be drawn are left out."""
    drawn = []
    for caption, draw in wanted.items():
        with drawing(caption):
            figure = draw()
            if figure is not None:
                svg = charts.to_svg(figure).replace(NORMAL, "var(--normal)")
                drawn.append(Chart(svg.replace(ANOMALOUS, "var(--anomalous)"), caption))
    return drawn


def _thumbnails(report: Report) -> list[tuple[str, list[tuple[str, list[Thumbnail]]]]]:
    """Returns the pictures of each dataset by kind, limited in number over all datasets."""
    scores = {entry.dataset: entry for entry in report.scores}
    datasets = list(dict.fromkeys(case.dataset for case in report.cases))
    limit = max(1, min(PICTURES_OF_A_KIND, PICTURES_IN_ALL // (4 * max(len(datasets), 1))))
    pictures = []
    for dataset in datasets:
        cases = [case for case in report.cases if case.dataset == dataset]
        groups = [
            (heading, [_thumbnail(case, scores.get(dataset), report.map_scale) for case in of])
            for heading, of in group_cases(cases, scores.get(dataset), limit=limit)
        ]
        pictures.append((names.dataset_name(dataset), groups))
    return pictures


def _thumbnail(case: Case, scores: DatasetScores | None, scale: Scale) -> Thumbnail:
    wrong, total = standing(case, scores)
    others = "normal images score as high" if case.label else "anomalies score as low"
    return Thumbnail(
        source=images.data_uri(images.thumbnail(case, scale=scale)),
        category=names.category_name(case.category),
        label=names.LABELS[case.label],
        score=f"{case.score:.3f}",
        standing=f"; {wrong} of {total} {others}" if total else "",
        file_name=case.file_name,
    )


def _skipped_and_issues(report: Report) -> list[tuple[str, Definitions]]:
    """Returns skipped datasets with the reason, and issues by dataset, each below its heading."""
    skipped = [(names.dataset_name(key), why) for key, why in report.skipped.items()]
    groups = [("Datasets", skipped)] if skipped else []
    for dataset, issues in report.issues.items():
        if issues:
            heading = f"{plural(len(issues), 'issue')} in {names.dataset_name(dataset)}"
            groups.append((heading, [(issue.file, issue.description) for issue in issues]))
    return groups


def _quantities(run: Mapping[str, Any]) -> list[tuple[str, Definitions]]:
    """Returns run.json in words: plain values first, then each mapping below its name."""
    plain = {key: value for key, value in run.items() if not isinstance(value, Mapping)}
    groups = [("", _definitions(plain))] if plain else []
    for key, value in run.items():
        if isinstance(value, Mapping) and value:
            name, unit = _split_unit(key)
            groups.append((name, _definitions(value, unit)))
    return groups


def _definitions(values: Mapping[str, Any], unit: str = "") -> Definitions:
    return [
        (_split_unit(key)[0], format_quantity(key + unit, value)) for key, value in values.items()
    ]


def format_quantity(key: str, value: Any) -> str:
    """A value of run.json for people: keys that end in "_seconds" or "_bytes" get a fitting unit."""
    unit = _split_unit(key)[1]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "_seconds" and isinstance(value, int | float):
        if value < 120:
            return f"{value:.2f} s"
        return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
    if unit == "_bytes" and isinstance(value, int | float):
        return f"{value / 2**30:.2f} GiB" if value >= 2**29 else f"{value / 2**20:.1f} MiB"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return (" " if key == "command" else ", ").join(str(entry) for entry in value)
    return tables.UNDEFINED if value is None else str(value)


def _split_unit(key: str) -> tuple[str, str]:
    """A key of run.json as words, and the unit at its end."""
    unit = next((unit for unit in ("_seconds", "_bytes") if key.endswith(unit)), "")
    return key.removesuffix(unit).replace("_", " "), unit
