"""Decoding every image of a dataset again, and comparing it with what is published or recorded."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from zsad_jax.data.benchmarks.counts import Counts, compare_counts, count
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Dataset, Sample, read_sample
from zsad_jax.data.inspect.target import Target
from zsad_jax.data.issues import Issue
from zsad_jax.data.preprocess import one_large_image
from zsad_jax.utils.progress import progress
from zsad_jax.utils.threads import map_in_threads


class Verified(NamedTuple):
    """The result of a verification.

    Attributes:
      counts: of the images that are there.
      differences: from the published counts, a sentence each.
      contradictions: between the records and what preparation recorded of them, a sentence each.
      unusable: issues of images that cannot be read, whose mask cannot be used, or whose mask is missing from a
        benchmark for pixel metrics.
      issues: all issues, those included.
      notes: what harms nothing.
      strict: whether any issue is a failure: without published counts, nothing else shows that all is there.
    """

    counts: Counts
    differences: list[str]
    contradictions: list[str]
    unusable: list[Issue]
    issues: list[Issue]
    notes: list[Issue]
    strict: bool

    @property
    def good(self) -> bool:
        """Whether all counts are right and every image and mask can be used."""
        failures = self.issues if self.strict else self.unusable
        return not (self.differences or self.contradictions or failures)


class _Looked(NamedTuple):
    """What is kept of an image."""

    sample: Sample | None  # without image and mask; None where its record cannot be read
    usable: bool
    issues: list[Issue]
    notes: list[Issue]


def verify(target: Target, *, num_workers: int = 1) -> Verified:
    """Decodes every image and mask, counts them, and compares the counts.

    Args:
      target: the dataset.
      num_workers: threads that decode.
    """
    counts: Counts = {}
    # Lost masks are the most frequent reason why a benchmark is useless.
    needs_masks = bool(target.published) and "pixel" in DATASETS[target.key].levels
    looked: list[_Looked] = []
    for split, dataset in target.splits.items():
        label = f"Verifying {target.title}, {split}"
        found = _look_at_all(dataset, label, num_workers, needs_masks=needs_masks)
        counts[split] = target.as_published(count(one.sample for one in found if one.sample))
        looked += found
    return Verified(
        counts,
        compare_counts(counts, target.published),
        [] if target.recorded is None else compare_counts(counts, target.recorded),
        [issue for one in looked if not one.usable for issue in one.issues],
        _unite(target.issues, (issue for one in looked for issue in one.issues)),
        _unite(target.notes, (note for one in looked for note in one.notes)),
        strict=not target.published,
    )


def _unite(recorded: Iterable[Issue], seen: Iterable[Issue]) -> list[Issue]:
    """Returns what preparation recorded and what is seen now, each once."""
    return list(dict.fromkeys((*recorded, *seen)))


def _look_at_all(
    dataset: Dataset, label: str, num_workers: int, *, needs_masks: bool
) -> Sequence[_Looked]:
    def look(index: int) -> _Looked:
        sample = read_sample(dataset, index)
        if isinstance(sample, Issue):
            return _Looked(None, False, [sample], [])
        with one_large_image(sample.image, *sample.masks):
            found = examine(sample)
        lacks_mask = needs_masks and bool(sample.label) and not sample.has_mask
        return _Looked(
            dataclasses.replace(sample, image=b"", mask=None),
            found.usable and not lacks_mask,
            [*found.issues, *[Issue("mask_missing", sample.file_name)] * lacks_mask],
            found.notes,
        )

    looked = map_in_threads(look, range(len(dataset)), num_workers=num_workers)
    return list(progress(looked, total=len(dataset), label=label))
