"""What `prepare` and `verify` say of a dataset, line by line."""

import os
from collections.abc import Iterator, Sequence

from zsad_jax.data import remarks
from zsad_jax.data.base import Fault
from zsad_jax.data.builders.counts import Counts
from zsad_jax.data.inspection import stock
from zsad_jax.data.inspection.target import Target


def describe_counts(target: Target, counts: Counts, differences: Sequence[str]) -> Iterator[str]:
    """The counts per split and category beside the published ones, and every difference."""
    key = os.path.basename(os.path.abspath(target.key))
    table = stock.tabulate_categories({key: counts}, {key: target.published})
    yield table.to_text("plain").rstrip()
    for difference in differences:
        yield f"differs from the published count: {difference}"
    if target.published and not differences:
        yield "all counts are the published ones"


def describe_remarks(
    faults: Sequence[Fault], notes: Sequence[Fault], *, show_all: bool, hint: str = ""
) -> Iterator[str]:
    """What is amiss, and what is worth a note: a line a kind, or one a file.

    Args:
      faults: what is amiss.
      notes: what harms nothing.
      show_all: whether each file has its line.
      hint: the command that shows all.
    """
    for word, found in (("amiss", faults), ("note", notes)):
        for kind in remarks.group(found):
            lines = kind.each() if show_all else [str(kind)]
            yield from (f"{word}: {line}" for line in lines)
    if faults:
        yield f"{remarks.count_amiss(faults)}{f'; all of them: {hint}' if hint and not show_all else ''}"
