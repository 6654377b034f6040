"""The HTML page of a report: the contents of its template."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zsad_jax.evaluate import Case, DatasetScores
from zsad_jax.report import charts, formats, images, run_tables, tables, wording
from zsad_jax.report.base import Report
from zsad_jax.report.cases import group_cases, standing
from zsad_jax.report.compare import UNLIKE_PAPER, WITHOUT_MASK
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
    # By metric, not by position: which columns a table has depends on what was computed.
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
    # Pictures are inside the page, whose size would grow with the number of datasets.
    limit = max(1, min(PICTURES_OF_A_KIND, PICTURES_IN_ALL // (4 * max(len(datasets), 1))))
    return {
        dataset: group_cases(cases, scores.get(dataset), limit=limit)
        for dataset, cases in datasets.items()
    }


def _quantities(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns run.json in words: plain values first, then each mapping below its name."""
    groups: dict[str, list[tuple[str, str]]] = {"": []}
    for key, value in run.items():
        name = NAMES.get(key, _plain(key))
        if key == "sweep":  # its table shows all of it
            continue
        if isinstance(value, Mapping):
            groups[name] = [(_plain(one), format_quantity(key, value[one])) for one in value]
        else:
            groups[""].append((name, format_quantity(key, value)))
    return [(name, words) for name, words in groups.items() if words]


def format_quantity(key: str, value: Any) -> str:
    """Returns the value of a key of run.json, or an entry of the mapping that it holds, in words."""
    return FORMS.get(key, _words)(value)


def _plain(key: str) -> str:
    return key.replace("_", " ")


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return tables.UNDEFINED if value is None else str(value)


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.2f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _bytes(value: int) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**29 else f"{value / 2**20:.1f} MiB"


# The names of keys of run.json on the page, of those that do not stand for themselves; and the forms of values.
NAMES = {
    "backbone_sha256": "SHA-256 of the backbone",
    "total_seconds": "total time",
    "parts_seconds": "time by part",
    "peak_memory_bytes": "peak memory",
    "device_wait_share": "share of time in which devices waited for the host",
    "num_images": "images",
    "num_unreadable": "unreadable images",
    "demonstration": "demo model",
    UNLIKE_PAPER: "options that differ from the paper's (ours, the paper's)",
    WITHOUT_MASK: "anomalous images without a mask",
}
FORMS: dict[str, Callable[[Any], str]] = {
    "command": " ".join,
    "total_seconds": _seconds,
    "parts_seconds": _seconds,
    "peak_memory_bytes": _bytes,
    "device_wait_share": "{:.1%}".format,
}
