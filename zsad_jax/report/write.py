"""The files of a report."""

import pathlib
import re
import shutil
from collections.abc import Iterable

from zsad_jax.files import PathLike, write_text
from zsad_jax.report import figures, formats, heatmaps, names, run_tables, tables
from zsad_jax.report.base import Case, Report
from zsad_jax.report.papers import compare_run
from zsad_jax.report.wording import DEMONSTRATION


def write_report(workdir: PathLike, report: Report) -> None:
    """Writes results.md, results.csv, results.tex, figures/ and report.html into a working directory.

    Every file is replaced atomically, and the same report gives the same bytes.
    """
    from zsad_jax.report.html import render_page

    workdir = pathlib.Path(workdir)
    write_text(workdir / "results.md", render_markdown(report))
    remark = DEMONSTRATION if report.demonstration else ""
    csv = run_tables.results_csv(
        report.rows,
        report.comparisons,
        report.notes,
        remark=remark,
        run=report.run,
    )
    write_text(workdir / "results.csv", csv)
    remarks = [remark] if remark else []
    latex = formats.latex_document(report.title, remarks, [*_own_tables(report), *_beside(report)])
    write_text(workdir / "results.tex", latex)
    write_figures(workdir / "figures", report)
    write_text(workdir / "report.html", render_page(report))


def render_markdown(report: Report) -> str:
    """The tables of a report as one markdown text."""
    parts = [f"# {report.title}\n"]
    if report.demonstration:
        parts.append(f"> **{DEMONSTRATION}**\n")
    parts += formats.explained_markdown(_own_tables(report))
    beside = _beside(report)
    if beside:
        parts += ["## Beside the papers\n", *formats.explained_markdown(beside)]
    if report.skipped:
        parts.append("### Left out\n")
        parts.append(
            _bullets([(names.dataset_name(key), why) for key, why in report.skipped.items()])
        )
    faults = [
        (f"{dataset}/{fault.file_name}", fault.reason)
        for dataset, group in report.faults.items()
        for fault in group
    ]
    if faults:
        parts.append("### What is amiss\n")
        parts.append(_bullets(faults))
    return "\n".join(parts)


def _own_tables(report: Report) -> list[tables.Table]:
    return run_tables.make_tables(
        report.rows, report.comparisons, notes=report.notes, run=report.run
    )


def _beside(report: Report) -> list[tables.Table]:
    return compare_run(report.rows, report.run)


def write_figures(folder: PathLike, report: Report) -> None:
    """Writes a heat map per case, the histogram and ROC curves per dataset, and the training curve."""
    folder = pathlib.Path(folder)
    for name in {scores.dataset for scores in report.scores}:
        shutil.rmtree(folder / name, ignore_errors=True)  # pictures of an earlier run
    for case in report.cases:
        words = [
            DEMONSTRATION.rstrip(".") if report.demonstration else "",
            names.dataset_name(case.dataset),
        ]
        figure = heatmaps.heatmap_figure(
            case.image,
            case.anomaly_map,
            case.mask,
            scale=report.map_scale,
            file_name=case.file_name,
            score=case.score,
            label=case.label,
            title=" · ".join(word for word in words if word),
        )
        figures.save_png(figure, folder / case.dataset / figure_name(case))
    for scores in report.scores:
        figures.save_png(
            figures.score_histogram(scores), folder / scores.dataset / "score_histogram.png"
        )
        roc = figures.roc_figure(scores)
        if roc is not None:
            figures.save_png(roc, folder / scores.dataset / "roc.png")
    training = figures.training_figure(report.history)
    if training is not None:
        figures.save_png(training, folder / "training.png")


def figure_name(case: Case) -> str:
    """The name of a case's heat-map figure: category, then what its file name adds to that."""
    path = pathlib.PurePosixPath(case.file_name.replace("\\", "/"))
    name = path.name.removesuffix(
        ".png"
    )  # other suffixes stay: 1.jpg and 1.tif may lie side by side
    parts = [part for part in (*path.parent.parts, name) if part not in (case.category, "/", "..")]
    return re.sub(r"[^\w.-]+", "-", "_".join([case.category, *parts]).strip("_")) + ".png"


def _bullets(items: Iterable[tuple[str, str]]) -> str:
    return "".join(f"- {name}: {words}\n" for name, words in items)
