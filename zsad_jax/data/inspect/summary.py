"""Findings about a dataset, and the lines that `prepare` and `verify` print of them."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zsad_jax.data.benchmarks.counts import Counts, compare_counts
from zsad_jax.data.inspect.opened import OpenedDataset
from zsad_jax.data.inspect.stock import tabulate_categories
from zsad_jax.data.issues import Issue, group_issues, summarize_issues
from zsad_jax.utils.errors import plural


class Findings(NamedTuple):
    """Findings about a dataset.

    Attributes:
      opened: the dataset.
      counts: of the images that are there.
      issues: what is wrong.
      notes: what harms nothing.
      unusable: issues of images that cannot be read, whose mask cannot be used, or whose mask is missing from a
        benchmark for pixel metrics.
    """

    opened: OpenedDataset
    counts: Counts
    issues: Sequence[Issue]
    notes: Sequence[Issue]
    unusable: Sequence[Issue] = ()

    @property
    def differences(self) -> list[str]:
        """Differences from the published counts."""
        return compare_counts(self.counts, self.opened.published)

    @property
    def contradictions(self) -> list[str]:
        """Differences from the counts that preparation recorded."""
        return compare_counts(self.counts, self.opened.recorded or {})

    @property
    def good(self) -> bool:
        """Whether all counts are right and every image and mask can be used."""
        # Without published counts, only the absence of issues shows that all is there.
        failures = self.unusable if self.opened.published else self.issues
        return not (self.differences or self.contradictions or failures)


def describe(found: Findings, *, hint: str) -> Iterator[str]:
    """Describes counts beside the published ones, then issues and notes.

    `hint` is the command that lists every file that has an issue; "" for a line for each file, else there is a
    line for each kind.
    """
    key, published = os.path.basename(os.path.abspath(found.opened.key)), found.opened.published
    yield tabulate_categories({key: found.counts}, {key: published}).to_text("plain").rstrip()
    yield from (f"differs from the published count: {one}" for one in found.differences)
    if published and not found.differences:
        yield "all counts are the published ones"
    yield from (f"differs from what preparation recorded: {one}" for one in found.contradictions)
    for word, issues in (("issue", found.issues), ("note", found.notes)):
        for kind in group_issues(issues):
            lines = [summarize_issues(kind)] if hint else map(str, kind)
            yield from (f"{word}: {line}" for line in lines)
    if found.issues:
        yield plural(len(found.issues), "issue") + (f"; to list all: {hint}" if hint else "")


def describe_verdict(found: Findings) -> str:
    """Describes the result of a verification in a line."""
    problems = {
        "counts that are not the published ones": found.differences,
        "counts that are not what preparation recorded": found.contradictions,
        "images that cannot be used": found.unusable,
    }
    words = [f"{what}: {len(them)}" for what, them in problems.items() if them]
    verdict = ", ".join(words) or "every image and mask that is there can be used"
    return verdict + (f"; {plural(len(found.issues), 'issue')}" if found.issues else "")
