"""The papers' tables as files: markdown, CSV, LaTeX and one HTML page."""

import pathlib
from collections.abc import Callable, Sequence
from html import escape

from zsad_jax.report import formats, names, tables
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
    writers: dict[str, Callable[[Sequence[PaperTables], Sequence[str]], str]] = {
        "markdown": _markdown,
        "csv": lambda papers, _: formats.to_csv(_all_tables(papers)),
        "latex": lambda papers, remarks: formats.latex_document(
            TITLE, remarks, _all_tables(papers)
        ),
        "html": _html,
    }
    return writers[format](papers, remarks)


def write_all(
    folder: PathLike, papers: Sequence[PaperTables], remarks: Sequence[str]
) -> list[pathlib.Path]:
    """Writes tables.md, tables.csv, tables.tex and tables.html, each atomically; returns their paths."""
    paths = []
    for format, suffix in FORMATS.items():
        paths.append(pathlib.Path(folder) / f"tables.{suffix}")
        write_text(paths[-1], render(papers, remarks, format))
    return paths


def _all_tables(papers: Sequence[PaperTables]) -> list[tables.Table]:
    return [table for paper in papers for table in paper.tables]


def _markdown(papers: Sequence[PaperTables], remarks: Sequence[str]) -> str:
    parts = [f"# {TITLE}\n", *(f"{remark}\n" for remark in remarks)]
    for paper in papers:
        parts.append(f"## {names.method_name(paper.paper)}\n\n{paper.title}\n")
        parts += formats.explained_markdown(paper.tables)
    return "\n".join(parts)


def _html(papers: Sequence[PaperTables], remarks: Sequence[str]) -> str:
    sections = {}
    for paper in papers:
        title = f'<p class="soft">{escape(paper.title)}</p>'
        sections[names.method_name(paper.paper)] = title + formats.explained_html(paper.tables)
    said = "".join(f'<p class="soft">{escape(remark)}</p>' for remark in remarks)
    return formats.html_page(TITLE, sections, above=said)
