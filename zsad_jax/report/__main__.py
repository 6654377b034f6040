"""`python -m zsad_jax.report DIR [DIR ...]`: the papers' tables with the results of working directories."""

import argparse
import sys

from zsad_jax.report.papers import compare_papers, find_missing, read_workdirs
from zsad_jax.report.papers.document import FORMATS, render, write_all
from zsad_jax.utils import command_line
from zsad_jax.utils.command_line import log_plainly
from zsad_jax.utils.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code. A mistake of the user's ends it with code 2."""
    parser = argparse.ArgumentParser(prog="python -m zsad_jax.report")
    parser.add_argument("workdirs", metavar="DIR", nargs="+", help="working directories of runs")
    parser.add_argument("--paper", help="only this one: tipsomaly, vip2clip, tps or faprompt")
    parser.add_argument("--table", help="only the table of this number; or poster, or gain")
    parser.add_argument("--format", choices=tuple(FORMATS), default="markdown")
    parser.add_argument("--out", metavar="DIR", help="write all formats there, as tables.*")
    parser.add_argument(
        "--all", action="store_true", help="ablations and variants too, the papers' and ours"
    )
    options = parser.parse_args(arguments)
    log_plainly()
    return command_line.guarded(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    ours = read_workdirs(options.workdirs, comparisons=options.all)
    papers = compare_papers(ours, paper=options.paper, table=options.table, everything=options.all)
    in_papers = {dataset for one in papers for dataset in one.datasets}
    if not any(dataset in in_papers for one in ours for dataset, _ in one.rows):
        raise UserError(
            f"Nothing in {', '.join(options.workdirs)} is of a dataset in these tables; they have"
            f" {', '.join(sorted(in_papers))}."
        )
    remarks = [*(one.about for one in ours), *find_missing(ours, papers)]
    if options.out is None:
        print(render(papers, remarks, options.format), end="")
        return
    for path in write_all(options.out, papers, remarks):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
