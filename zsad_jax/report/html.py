"""The HTML page of a report: the contents of its template."""

from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax.evaluate import Case, DatasetScores
from zsad_jax.report import charts, formats, images, run_tables, tables, wording
from zsad_jax.report.base import Report
from zsad_jax.report.cases import group_cases, standing
from zsad_jax.report.rows import MEAN
from zsad_jax.utils.images import palette_stops

HEADLINES = ("image_auroc", "pixel_auroc", "pixel_aupro")
PICTURES_IN_ALL = 120  # at some 35 kB each
PICTURES_OF_A_KIND = 6


def render_page(report: Report) -> str:
    """Returns the report as one self-contained HTML document, below about 6 MB."""
    scores = {entry.dataset: entry for entry in report.scores}
    return formats.render(
        "report.html",
        report=report,
        descriptions=dict.fromkeys(wording.describe(row) for row in report.rows),
        headlines=_headlines(report),
        num_images=sum(row["n_images"] for row in report.rows if row["category"] == MEAN),
        num_datasets=len({row["dataset"] for row in report.rows}),
        score_charts={key: charts.score_charts(entry) for key, entry in scores.items()},
        training_chart=charts.training_chart(report.history),
        to_svg=charts.to_svg,
        palette=palette_stops(9),
        cases=_grouped_cases(report, scores),
        standing=lambda case: standing(case, scores.get(case.dataset)),
        thumbnail=lambda case: images.data_uri(images.thumbnail(case, scale=report.map_scale)),
        quantities=_quantities(report.run),
    )


def _headlines(report: Report) -> list[tuple[str, list[tuple[str, tables.Cell]]]]:
    """Returns the main numbers with their names: of the only dataset, or the means over datasets."""
    table = run_tables.dataset_table(report.rows, {}, report.run)
    metrics = [dict(column.keys)["metric"] for column in table.columns]
    shown = [i for i, metric in enumerate(metrics) if metric in HEADLINES]
    return [
        (line.labels[0], [(table.columns[i].full, line.cells[i]) for i in shown])
        for line in [line for line in table.lines if line.summary] or table.lines[-1:]
    ]


def _grouped_cases(
    report: Report, scores: Mapping[str, DatasetScores]
) -> dict[str, list[tuple[str, list[Case]]]]:
    """Returns the cases of each dataset by kind, limited in number over all datasets."""
    datasets: dict[str, list[Case]] = {}
    for case in report.cases:
        datasets.setdefault(case.dataset, []).append(case)
    limit = max(1, min(PICTURES_OF_A_KIND, PICTURES_IN_ALL // (4 * max(len(datasets), 1))))
    return {
        dataset: group_cases(cases, scores.get(dataset), limit=limit)
        for dataset, cases in datasets.items()
    }


def _quantities(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns run.json in words: plain values first, then each mapping below its name."""
    plain = {key: value for key, value in run.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in run.items() if isinstance(value, Mapping)}
    groups = []
    for heading, values in {"": plain, **nested}.items():
        name, unit = _split_unit(heading)
        words = [(_split_unit(key)[0], format_quantity(key + unit, values[key])) for key in values]
        groups.append((name, words))
    return [(name, words) for name, words in groups if words]


def format_quantity(key: str, value: Any) -> str:
    """Returns a value of run.json in words; of keys that end in "_seconds" or "_bytes" with a fitting unit."""
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
        return (" " if key == "command" else ", ").join(map(str, value))
    return tables.UNDEFINED if value is None else str(value)


def _split_unit(key: str) -> tuple[str, str]:
    """Returns a key of run.json as words, and the unit at its end."""
    unit = next((unit for unit in ("_seconds", "_bytes") if key.endswith(unit)), "")
    return key.removesuffix(unit).replace("_", " "), unit
