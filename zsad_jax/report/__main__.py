"""`python -m zsad_jax.report DIR [DIR ...]`: the papers' tables with the results of working directories."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from zsad_jax.report import formats
from zsad_jax.report.papers import PaperTables, compare_papers, find_missing, read_workdirs
from zsad_jax.report.published import MAIN_TABLES
from zsad_jax.utils import command_line
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import user_path, write_text
from zsad_jax.utils.remote import fetch

TITLE = "Comparison with the papers"
SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex", "html": "html"}  # by format


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns the exit code, 2 for user errors."""
    return command_line.run_parsed(_make_parser, arguments)


def _make_parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m zsad_jax.report",
        description="Show the papers' tables beside the results of finished runs.",
    )
    words = "working directory of a finished run"
    parser.add_argument("workdirs", metavar="DIR", nargs="+", help=words)
    parser.add_argument("--paper", help=f"paper to show: {', '.join(MAIN_TABLES)} (default: all)")
    parser.add_argument(
        "--table", help="table to show: a number, poster or gain (default: main results and gain)"
    )
    parser.add_argument(
        "--format",
        choices=tuple(SUFFIXES),
        default="markdown",
        help="output format (default: markdown)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=user_path,
        help="write tables in all formats to this folder instead of printing them",
    )
    parser.add_argument(
        "--all", action="store_true", help="include published ablations and our comparisons"
    )
    parser.set_defaults(run=_compare)
    return parser


def _compare(options: argparse.Namespace) -> None:
    ours = read_workdirs(map(fetch, options.workdirs), comparisons=options.all)
    papers = compare_papers(ours, paper=options.paper, table=options.table, everything=options.all)
    in_papers = {dataset for one in papers for dataset in one.datasets}
    if not any(dataset in in_papers for one in ours for dataset, _ in one.rows):
        raise UserError(
            f"Found no results in {', '.join(options.workdirs)} for the datasets of these tables"
            f" ({', '.join(sorted(in_papers))}). The tables of other datasets are in results.md and"
            " report.html of their run."
        )
    remarks = [*(one.description for one in ours), *find_missing(ours, papers)]
    if options.out is None:
        print(_render(papers, remarks, options.format), end="")
        return
    for format, suffix in SUFFIXES.items():
        path = pathlib.Path(options.out) / f"tables.{suffix}"
        write_text(path, _render(papers, remarks, format))
        print(path)


def _render(papers: Sequence[PaperTables], remarks: Sequence[str], format: str) -> str:
    """Writes tables as one text, after the remarks, for which CSV has no place."""
    shown = [table for paper in papers for table in paper.tables]
    if format == "csv":
        return formats.to_csv(shown)
    if format == "latex":
        return formats.render("tables.tex", title=TITLE, remarks=remarks, tables=shown)
    template = f"papers.{SUFFIXES[format]}"
    return formats.render(template, title=TITLE, remarks=remarks, papers=papers)


if __name__ == "__main__":
    sys.exit(main())
