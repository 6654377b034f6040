"""The files of a report."""

import functools
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from zsad_jax.evaluate import Case
from zsad_jax.report import charts, formats, images, names, run_tables
from zsad_jax.report.base import Report
from zsad_jax.report.html import render_page
from zsad_jax.report.wording import DEMONSTRATION
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike, safe_name, write_json, write_text
from zsad_jax.utils.images import drawing
from zsad_jax.utils.records import parse_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD = ".written.json"  # the figures that the last report wrote


def write_report(workdir: PathLike, report: Report) -> None:
    """Writes results.md, results.csv, results.tex, figures/ and report.html into a working directory.

    Every file is replaced atomically, and the same report gives the same bytes.
    """
    workdir = pathlib.Path(workdir)
    remarks = [DEMONSTRATION] * report.demonstration
    write_text(workdir / "results.md", formats.render("report.md", report=report))
    table = run_tables.results_csv(
        report.rows, report.comparisons, report.notes, remark=" ".join(remarks), run=report.run
    )
    write_text(workdir / "results.csv", table)
    tables = [*report.tables, *report.paper_tables]
    latex = formats.render("tables.tex", title=report.title, remarks=remarks, tables=tables)
    write_text(workdir / "results.tex", latex)
    write_figures(workdir / "figures", report)
    write_text(workdir / "report.html", render_page(report))


def write_figures(folder: PathLike, report: Report) -> None:
    """Writes a heat map per case, the charts of each dataset, and the training curve."""
    folder = pathlib.Path(folder)
    written: list[str] = []
    # A link could make the report overwrite or remove files elsewhere.
    for path in (folder, *(folder / safe_name(scores.dataset) for scores in report.scores)):
        if path.is_symlink():
            raise UserError(
                f"{path} is a link. Figures are written to real folders only. Remove the link."
            )

    def save(draw: "Callable[[], Figure | Image.Image | None]", *names: str) -> None:
        name = "/".join(names)
        with drawing(name):
            picture = draw()
            if picture is not None:
                charts.save_png(picture, folder / name)
                written.append(name)

    demonstration = f"{DEMONSTRATION} " * report.demonstration
    for case in report.cases:
        title = demonstration + names.dataset_name(case.dataset)
        heat_map = functools.partial(images.heat_map, case, scale=report.map_scale, title=title)
        save(heat_map, safe_name(case.dataset), figure_name(case))
    for scores in report.scores:
        for chart in charts.score_charts(scores):
            save(chart.draw, safe_name(scores.dataset), chart.name)
    for dataset, ablations in report.ablation_charts.items():
        for chart in ablations:
            save(chart.draw, safe_name(dataset), chart.name)
    training = charts.training_chart(report.history)
    save(training.draw, training.name)
    _remove_earlier(folder, written)


def _remove_earlier(folder: pathlib.Path, written: list[str]) -> None:
    """Removes the figures of an earlier report that this one does not have, and nothing else."""
    record = folder / RECORD
    # Only recorded figures are removed: users may keep files of their own in the folder.
    try:
        earlier = set(map(str, parse_json(record.read_bytes())))
    except (OSError, ValueError, TypeError):
        earlier = set()
    for name in earlier - set(written):
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())  # an edited record, or a link
        if inside and path.suffix == ".png" and path.is_file():
            path.unlink()
    write_json(record, written)


def figure_name(case: Case) -> str:
    """Returns the file name of a case's heat map: its category, then what its file name adds to that."""
    path = pathlib.PurePosixPath(case.file_name.replace("\\", "/"))
    # Other suffixes stay: 1.jpg and 1.tif may be in the same folder.
    name = path.name.removesuffix(".png")
    parts = [part for part in (*path.parent.parts, name) if part not in (case.category, "/", "..")]
    return safe_name("_".join([case.category, *parts]).strip("_")) + ".png"
