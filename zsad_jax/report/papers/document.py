"""The papers' tables as files: markdown, CSV, LaTeX and one HTML page."""

import pathlib
from collections.abc import Sequence

from zsad_jax.report import formats
from zsad_jax.report.papers import PaperTables
from zsad_jax.utils.files import PathLike, write_text

TITLE = "The papers' tables, ours beside theirs"
FORMATS = {"markdown": "md", "csv": "csv", "latex": "tex", "html": "html"}  # and their suffixes


def render(papers: Sequence[PaperTables], remarks: Sequence[str], format: str) -> str:
    """The tables as one text.

    Args:
      papers: what to show.
      remarks: sentences before the tables; CSV has no place for them.
      format: one of `FORMATS`.
    """
    shown = [table for paper in papers for table in paper.tables]
    if format == "csv":
        return formats.to_csv(shown)
    if format == "latex":
        return formats.render("tables.tex", title=TITLE, remarks=remarks, tables=shown)
    template = f"papers.{FORMATS[format]}"
    return formats.render(template, title=TITLE, remarks=remarks, papers=papers)


def write_all(
    folder: PathLike, papers: Sequence[PaperTables], remarks: Sequence[str]
) -> list[pathlib.Path]:
    """Writes tables.md, tables.csv, tables.tex and tables.html, each atomically; returns their paths."""
    paths = []
    for format, suffix in FORMATS.items():
        paths.append(pathlib.Path(folder) / f"tables.{suffix}")
        write_text(paths[-1], render(papers, remarks, format))
    return paths
