"""The lines that `prepare` and `verify` print about a dataset."""

import os
from collections.abc import Iterator, Sequence

from zsad_jax.data.benchmarks.counts import Counts, compare_counts
from zsad_jax.data.inspect.stock import tabulate_categories
from zsad_jax.data.inspect.target import Target
from zsad_jax.data.issues import Issue, group_issues, summarize_issues
from zsad_jax.utils.errors import plural


def describe(
    target: Target,
    counts: Counts,
    issues: Sequence[Issue],
    notes: Sequence[Issue],
    *,
    contradictions: Sequence[str] = (),
    hint: str = "",
) -> Iterator[str]:
    """Describes counts beside the published ones, then issues and notes.

    Args:
      target: the dataset.
      counts: of its images.
      issues: what is wrong.
      notes: what harms nothing.
      contradictions: how the counts differ from those that preparation recorded.
      hint: the command that lists every file that has an issue; "": a line for each file, else for each kind.
    """
    key = os.path.basename(os.path.abspath(target.key))
    table = tabulate_categories({key: counts}, {key: target.published})
    yield table.to_text("plain").rstrip()
    differences = compare_counts(counts, target.published)
    yield from (f"differs from the published count: {one}" for one in differences)
    if target.published and not differences:
        yield "all counts are the published ones"
    yield from (f"differs from what preparation recorded: {one}" for one in contradictions)
    for word, found in (("issue", issues), ("note", notes)):
        for kind in group_issues(found):
            lines = [summarize_issues(kind)] if hint else map(str, kind)
            yield from (f"{word}: {line}" for line in lines)
    if issues:
        yield plural(len(issues), "issue") + (f"; to list all: {hint}" if hint else "")
