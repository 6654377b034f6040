"""Findings about a dataset, and the lines that `prepare` and `verify` print of them."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zsad_jax.data.benchmarks.counts import Counts, compare_counts
from zsad_jax.data.inspect.opened import OpenedDataset
from zsad_jax.data.inspect.stock import tabulate_categories
from zsad_jax.data.issues import FILES_SHOWN, Issue, group_issues, summarize_issues
from zsad_jax.utils.errors import plural


class Findings(NamedTuple):
    """Findings about a dataset.

    Attributes:
      opened: the dataset.
      counts: of the images that exist.
      issues: problems with its files.
      notes: remarks that do not affect results.
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
        """The differences from the published counts."""
        return compare_counts(self.counts, self.opened.published)

    @property
    def contradictions(self) -> list[str]:
        """The differences from the counts that preparation recorded."""
        return compare_counts(self.counts, self.opened.recorded or {})

    @property
    def good(self) -> bool:
        """Whether all counts are right and all images and masks are usable."""
        # Without published counts, only the absence of issues shows that nothing is missing.
        failures = self.unusable if self.opened.published else self.issues
        return not (self.differences or self.contradictions or failures)


def describe(found: Findings, *, hint: str) -> Iterator[str]:
    """Yields lines with the counts and the published ones, then issues and notes.

    Args:
      found: what is described.
      hint: the command that lists every file with an issue, for a line per kind; "" for a line per file.
    """
    key, published = os.path.basename(os.path.abspath(found.opened.key)), found.opened.published
    yield tabulate_categories({key: found.counts}, {key: published}).to_text("plain").rstrip()
    yield from (f"published count differs: {one}" for one in found.differences)
    if published and not found.differences:
        yield "all counts match the published ones"
    yield from (f"recorded count differs: {one}" for one in found.contradictions)
    for word, issues in (("issue", found.issues), ("note", found.notes)):
        for kind in group_issues(issues):
            lines = [summarize_issues(kind)] if hint else map(str, kind)
            yield from (f"{word}: {line}" for line in lines)
    if found.issues:
        shortened = any(len(kind) > FILES_SHOWN for kind in group_issues(found.issues))
        rest = f". To list all: {hint}" if hint and shortened else ""
        yield plural(len(found.issues), "issue") + rest


def describe_verdict(found: Findings) -> str:
    """Describes the result of a verification in a line."""
    problems = (
        (found.differences, "difference", " from the published counts"),
        (found.contradictions, "difference", " from the recorded counts"),
        (found.unusable, "unusable sample", ""),
    )
    words = [plural(len(them), noun) + rest for them, noun, rest in problems if them]
    usable = "all files can be read" if found.issues else "all images and masks are usable"
    verdict = ", ".join(words) or usable
    return verdict + (f"; {plural(len(found.issues), 'issue')}" if found.issues else "")
