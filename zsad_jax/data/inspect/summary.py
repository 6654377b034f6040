"""What `prepare` and `verify` say of a dataset, line by line."""

import os
from collections.abc import Iterator, Sequence

from zsad_jax.data.benchmarks.counts import Counts
from zsad_jax.data.inspect import stock
from zsad_jax.data.inspect.target import Target
from zsad_jax.data.issues import Issue, group_issues, summarize_issues
from zsad_jax.utils.errors import plural


def describe_counts(target: Target, counts: Counts, differences: Sequence[str]) -> Iterator[str]:
    """The counts per split and category beside the published ones, and every difference."""
    key = os.path.basename(os.path.abspath(target.key))
    table = stock.tabulate_categories({key: counts}, {key: target.published})
    yield table.to_text("plain").rstrip()
    for difference in differences:
        yield f"differs from the published count: {difference}"
    if target.published and not differences:
        yield "all counts are the published ones"


def describe_issues(
    issues: Sequence[Issue], notes: Sequence[Issue], *, show_all: bool, hint: str = ""
) -> Iterator[str]:
    """Describes issues and notes: a line for each kind, or for each file.

    Args:
      issues: what is wrong.
      notes: what harms nothing.
      show_all: whether each file has its line.
      hint: the command that shows all.
    """
    for word, found in (("issue", issues), ("note", notes)):
        for kind in group_issues(found):
            lines = map(str, kind) if show_all else [summarize_issues(kind)]
            yield from (f"{word}: {line}" for line in lines)
    if issues:
        more = f"; to list all: {hint}" if hint and not show_all else ""
        yield f"{plural(len(issues), 'issue')}{more}"
