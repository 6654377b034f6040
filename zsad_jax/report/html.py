"""One self-contained page: style, charts and pictures are inside, nothing is fetched."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from zsad_jax.evaluate import Case, DatasetScores
from zsad_jax.report import figures, formats, names, run_tables, tables, thumbnails, wording
from zsad_jax.report.base import Report
from zsad_jax.report.cases import group_cases, standing
from zsad_jax.report.papers import compare_run
from zsad_jax.report.pictures import palette_stops
from zsad_jax.report.rows import MEAN
from zsad_jax.report.wording import DEMONSTRATION
from zsad_jax.utils.errors import plural

HEADLINES = ("image_auroc", "pixel_auroc", "pixel_aupro")
PICTURES_IN_ALL = 120  # at some 35 kB each
PICTURES_OF_A_KIND = 6


def render_page(report: Report) -> str:
    """The report as one HTML document, below about 6 MB."""
    sections = {
        "Results": _results(report),
        "Beside the papers": _beside_papers(report),
        "Comparisons": _comparisons(report),
        "Scores": _scores(report),
        "Pictures": _pictures(report),
        "Training": _training(report),
        "Skipped and issues": _left_out(report),
        "Run": _run(report),
    }
    return formats.html_page(
        report.title,
        sections,
        above=_introduction(report),
        below=_banner(report) + _headlines(report),
    )


def _introduction(report: Report) -> str:
    words = dict.fromkeys(wording.describe(row) for row in report.rows)
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in words)


def _banner(report: Report) -> str:
    if not report.demonstration:
        return ""
    return (
        f'<p class="banner" role="note"><b>{DEMONSTRATION}</b> The backbone is very small and was trained on'
        " drawn images, to show how everything works. Its numbers say nothing about real weights.</p>"
    )


def _headlines(report: Report) -> str:
    """The numbers that are asked for first: of the only dataset, or the means over datasets."""
    table = run_tables.dataset_table(report.rows, {}, report.run)
    shown = [line for line in table.lines if line.summary] or table.lines[-1:]
    images = sum(row["n_images"] for row in report.rows if row["category"] == MEAN)
    datasets = len({row["dataset"] for row in report.rows})
    parts = []
    for line in shown:
        tiles = [_tile("Images", f"{images:,}", plural(datasets, "dataset"))] * (line is shown[-1])
        for column, cell in list(zip(table.columns, line.cells, strict=True))[::-1]:
            if dict(column.keys)["metric"] in HEADLINES:
                paper = f"paper {formats.html_beside(cell)}" if cell.paper else ""
                paper += ", not comparable" if cell.apart else ""
                tiles.insert(0, _tile(column.full, cell.number, paper))
        parts.append(f'<p class="soft">{escape(line.labels[0])}, percent</p>')
        parts.append(f'<div class="tiles">{"".join(tiles)}</div>')
    return "".join(parts)


def _tile(name: str, number: str, words: str) -> str:
    small = f"<small>{words or '&nbsp;'}</small>"
    return f'<div class="tile"><span>{escape(name)}</span><b>{number}</b>{small}</div>'


def _results(report: Report) -> str:
    if not report.rows:
        return ""
    made = run_tables.make_tables(report.rows, notes=report.notes, run=report.run)
    return formats.explained_html(made)


def _beside_papers(report: Report) -> str:
    return formats.explained_html(compare_run(report.rows, report.run))


def _comparisons(report: Report) -> str:
    made = run_tables.make_tables(report.rows, report.comparisons, notes=report.notes)
    return formats.explained_html(table for table in made if table.compared == tables.MAIN_RESULT)


def _scores(report: Report) -> str:
    parts = []
    for scores in report.scores:
        name = names.dataset_name(scores.dataset)
        parts.append(f'<h3>{escape(name)}</h3><div class="charts">')
        words = (
            f"Histograms of the image scores of {name}, normal and anomalous images, by category"
        )
        parts.append(_chart(functools.partial(figures.score_histogram, scores), words))
        words = (
            f"ROC curves of the image scores of {name} by category, with the area below in percent"
        )
        parts.append(_chart(functools.partial(figures.roc_figure, scores), words))
        parts.append("</div>")
    return "".join(parts)


def _chart(make: Callable[[], Any], words: str) -> str:
    """A figure with its caption; "" where there is none, or it cannot be drawn."""
    svg = ""
    with figures.drawing(words):
        figure = make()
        svg = "" if figure is None else figures.to_svg(figure)
    if not svg:
        return ""
    svg = svg.replace(figures.NORMAL, "var(--normal)")
    svg = svg.replace(figures.ANOMALOUS, "var(--anomalous)")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
    return f'<figure class="card chart">{svg}<figcaption>{escape(words)}.</figcaption></figure>'


def _pictures(report: Report) -> str:
    if not report.cases:
        return ""
    scores = {entry.dataset: entry for entry in report.scores}
    datasets = list(dict.fromkeys(case.dataset for case in report.cases))
    limit = max(1, min(PICTURES_OF_A_KIND, PICTURES_IN_ALL // (4 * len(datasets))))
    parts = [
        '<p class="legend">From left to right: the image with its ground truth outlined, the anomaly'
        " map, and the map over the image. All maps have the same colour scale.</p>",
        _colour_scale(report.map_scale),
    ]
    for dataset in datasets:
        parts.append(f"<h3>{escape(names.dataset_name(dataset))}</h3>")
        cases = [case for case in report.cases if case.dataset == dataset]
        for kind, members in group_cases(cases, scores.get(dataset), limit=limit):
            shown = "".join(
                _picture(case, scores.get(dataset), report.map_scale) for case in members
            )
            parts.append(f'<p>{kind.heading}</p><div class="cases">{shown}</div>')
    return "".join(parts)


def _picture(case: Case, scores: DatasetScores | None, scale: tuple[float, float]) -> str:
    label = figures.LABELS[case.label]
    category = names.category_name(case.category)
    wrong, total = standing(case, scores)
    others = "normal images score as high" if case.label else "anomalies score as low"
    place = f"; {wrong} of {total} {others}" if total else ""
    words = (
        f"{category}, {label}, score {case.score:.3f}: image and anomaly map of {case.file_name}"
    )
    return (
        f'<figure><img loading="lazy" alt="{escape(words)}" src="{thumbnails.data_uri(case, scale=scale)}">'
        f"<figcaption><b>{escape(category)}</b>, {label}, score {case.score:.3f}{place}<br>"
        f"{escape(case.file_name)}</figcaption></figure>"
    )


def _colour_scale(scale: tuple[float, float]) -> str:
    low, high = scale
    colours = ", ".join(palette_stops(9))
    return (
        f'<div class="scale"><span>{low:g}</span><i style="background:linear-gradient(to right, {colours})">'
        f"</i><span>{high:g}</span><span>anomaly map</span></div>"
    )


def _training(report: Report) -> str:
    make = functools.partial(figures.training_figure, report.history)
    return _chart(make, "Loss and its terms over the training steps")


def _left_out(report: Report) -> str:
    skipped = [(names.dataset_name(key), why) for key, why in report.skipped.items()]
    parts = [f"<h3>Datasets</h3>{_definitions(skipped)}"] if skipped else []
    for dataset, issues in report.issues.items():
        if issues:
            heading = f"{plural(len(issues), 'issue')} in {names.dataset_name(dataset)}"
            described = [(issue.file, issue.description) for issue in issues]
            parts.append(f"<h3>{escape(heading)}</h3>{_definitions(described)}")
    return "".join(parts)


def _run(report: Report) -> str:
    plain = {key: value for key, value in report.run.items() if not isinstance(value, Mapping)}
    parts = [_quantities(plain)] if plain else []
    for key, value in report.run.items():
        if isinstance(value, Mapping) and value:
            name, unit = _split_unit(key)
            parts.append(f"<h3>{escape(name)}</h3>{_quantities(value, unit)}")
    if report.config_text:
        config = escape(report.config_text.strip())
        parts.append(f"<details open><summary>Config</summary><pre>{config}</pre></details>")
    return "".join(parts)


def _quantities(values: Mapping[str, Any], unit: str = "") -> str:
    named = (
        (_split_unit(key)[0], format_quantity(key + unit, value)) for key, value in values.items()
    )
    return _definitions(named)


def _definitions(items: Iterable[tuple[str, str]]) -> str:
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in items)
    return f"<dl>{''.join(pairs)}</dl>"


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
