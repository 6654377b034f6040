"""One self-contained page: style, charts and pictures are inside, nothing is fetched."""

import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from zsad_jax.report import figures, names, tables, thumbnails, wording
from zsad_jax.report.base import Case, DatasetScores, Report
from zsad_jax.report.cases import group_cases, standing
from zsad_jax.report.pictures import palette_stops
from zsad_jax.report.rows import MEAN
from zsad_jax.report.write import DEMONSTRATION

HEADLINES = ("image_auroc", "pixel_auroc", "pixel_aupro")
PICTURES_IN_ALL = 120  # at some 35 kB each
PICTURES_OF_A_KIND = 6


def render_page(report: Report) -> str:
    """The report as one HTML document, below about 6 MB."""
    sections = {
        "Results": _results(report),
        "Comparisons": _comparisons(report),
        "Scores": _scores(report),
        "Pictures": _pictures(report),
        "Training": _training(report),
        "Left out": _left_out(report),
        "Run": _run(report),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>'
        for name, body in sections.items()
    )
    style = importlib.resources.files("zsad_jax.report") / "assets" / "report.css"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{style.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>{escape(report.title)}</h1>{_introduction(report)}<nav>{links}</nav>"
        f"{_banner(report)}{_headlines(report)}</header><main>{body}</main>"
        "<footer>Made by zsad_jax. 0 is normal, 1 anomalous; a score is per image, a map per pixel.</footer>"
        "</body></html>\n"
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
    """The numbers that are asked for first: of the only dataset, or the mean over datasets."""
    lines = tables.dataset_table(report.rows, {})
    if not lines.lines:
        return ""
    line = lines.lines[-1]
    images = sum(row["n_images"] for row in report.rows if row["category"] == MEAN)
    tiles = []
    for metric, cell in zip(lines.metrics, line.cells, strict=True):
        if metric in HEADLINES:
            paper = f"paper {_beside(cell)}" if cell.paper else ""
            tiles.append(_tile(names.METRICS[metric], _number(cell.ours), paper))
    datasets = len({row["dataset"] for row in report.rows})
    tiles.append(_tile("Images", f"{images:,}", _count(datasets, "dataset")))
    return f'<p class="soft">{escape(line.labels[0])}, percent</p><div class="tiles">{"".join(tiles)}</div>'


def _tile(name: str, number: str, words: str) -> str:
    small = f"<small>{words or '&nbsp;'}</small>"
    return f'<div class="tile"><span>{escape(name)}</span><b>{number}</b>{small}</div>'


def _results(report: Report) -> str:
    return _table_section(tables.make_tables(report.rows, (), report.notes)) if report.rows else ""


def _comparisons(report: Report) -> str:
    made = tables.make_tables(report.rows, report.comparisons, report.notes)
    return _table_section([table for table in made if table.compared == tables.MAIN_RESULT])


def _table_section(made: Sequence[tables.Table]) -> str:
    if not made:
        return ""
    return f'<p class="legend">{escape(tables.legend(made[0].compared))}</p>' + "".join(
        map(_table, made)
    )


def _table(table: tables.Table) -> str:
    heads = "".join(f'<th class="label" scope="col">{escape(head)}</th>' for head in table.head)
    heads += "".join(
        f'<th scope="col">{escape(names.METRICS[metric])}</th>' for metric in table.metrics
    )
    lines = []
    for line in table.lines:
        marks = "".join(f"<sup>[{mark}]</sup>" for mark in line.marks)
        first, *others = line.labels
        entries = f'<th class="label" scope="row">{escape(first)}{marks}</th>'
        entries += "".join(f'<td class="label">{escape(label)}</td>' for label in others)
        for cell in line.cells:
            spread = f" ± {cell.spread:.1f}" if cell.spread is not None else ""
            beside = _beside(cell)
            small = f"<small>{beside}</small>" if beside else ""
            entries += f"<td>{_number(cell.ours)}{spread}{small}</td>"
        lines.append(f"<tr{' class=summary' if line.summary else ''}>{entries}</tr>")
    notes = "".join(f"<li>{escape(words)}</li>" for words in table.footnotes)
    notes = f'<ol class="notes">{notes}</ol>' if notes else ""
    return (
        f'<div class="card"><table><caption>{escape(table.title)}</caption><thead>{_heads(table)}</thead>'
        f"<tbody>{''.join(lines)}</tbody></table>{notes}</div>"
    )


def _heads(table: tables.Table) -> str:
    """Two head rows: image and pixel level above, the metrics below."""
    upper = "".join(
        f'<th class="label" scope="col" rowspan="2">{escape(head)}</th>' for head in table.head
    )
    for level, name in names.METRIC_GROUPS.items():
        count = sum(metric.startswith(level) for metric in table.metrics)
        upper += f'<th scope="colgroup" colspan="{count}">{name}</th>'
    lower = "".join(
        f'<th scope="col">{escape(names.METRICS[metric].removeprefix("Image ").removeprefix("Pixel "))}</th>'
        for metric in table.metrics
    )
    return f'<tr class="levels">{upper}</tr><tr>{lower}</tr>'


def _number(value: float | None) -> str:
    return tables.UNDEFINED if value is None else f"{value:.1f}"


def _beside(cell: tables.Cell) -> str:
    """The small second line of a cell: the paper's number, and the difference."""
    parts = []
    if cell.paper:
        parts.append(f"{cell.paper.percent:.1f}{tables.DOUBT if cell.paper.suspicious else ''}")
    if cell.difference is not None:
        parts.append(f"({tables.signed(cell.difference)})")
    return escape(" ".join(parts))


def _scores(report: Report) -> str:
    parts = []
    for scores in report.scores:
        name = names.dataset_name(scores.dataset)
        histogram = figures.score_histogram(scores)
        parts.append(f'<h3>{escape(name)}</h3><div class="charts">')
        words = (
            f"Histograms of the image scores of {name}, normal and anomalous images, by category"
        )
        parts.append(_chart(histogram, words))
        roc = figures.roc_figure(scores)
        if roc is not None:
            words = f"ROC curves of the image scores of {name} by category, with the area below in percent"
            parts.append(_chart(roc, words))
        parts.append("</div>")
    return "".join(parts)


def _chart(figure: Any, words: str) -> str:
    svg = figures.to_svg(figure).replace(figures.NORMAL, "var(--normal)")
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
    figure = figures.training_figure(report.history)
    return "" if figure is None else _chart(figure, "Loss and its terms over the training steps")


def _left_out(report: Report) -> str:
    skipped = [(names.dataset_name(key), why) for key, why in report.skipped.items()]
    parts = [f"<h3>Datasets</h3>{_definitions(skipped)}"] if skipped else []
    for dataset, faults in report.faults.items():
        if faults:
            heading = (
                f"{_count(len(faults), 'image')} of {names.dataset_name(dataset)} could not be used"
            )
            parts.append(f"<h3>{escape(heading)}</h3>{_definitions(faults)}")
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
