"""Decoding every image of a dataset again."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

from zsad_jax.data.benchmarks.counts import Counts, count
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Dataset, Sample, read_sample
from zsad_jax.data.inspect.opened import OpenedDataset
from zsad_jax.data.inspect.summary import Findings
from zsad_jax.data.issues import Issue, merge_issues
from zsad_jax.data.preprocess import one_large_image
from zsad_jax.utils.progress import progress
from zsad_jax.utils.threads import map_in_threads


class _Looked(NamedTuple):
    sample: Sample | None  # without image and mask; None where its record cannot be read
    usable: bool
    issues: list[Issue]
    notes: list[Issue]


def verify(opened: OpenedDataset, *, num_workers: int = 1) -> Findings:
    """Decodes every image and mask of a dataset in `num_workers` threads, and counts them."""
    counts: Counts = {}
    # Lost masks are the most frequent reason why a benchmark is useless.
    needs_masks = bool(opened.published) and "pixel" in DATASETS[opened.key].levels
    looked: list[_Looked] = []
    for split, dataset in opened.splits.items():
        look = functools.partial(_look, dataset, needs_masks)
        seen: Iterable[_Looked] = map_in_threads(look, range(len(dataset)), num_workers=num_workers)
        label = f"Verifying {opened.title}, {split}"
        found = list(progress(seen, total=len(dataset), label=label))
        counts[split] = opened.as_published(count(one.sample for one in found if one.sample))
        looked += found
    return Findings(
        opened,
        counts,
        issues=merge_issues([opened.issues, *(one.issues for one in looked)]),
        notes=merge_issues([opened.notes, *(one.notes for one in looked)]),
        unusable=[issue for one in looked if not one.usable for issue in one.issues],
    )


def _look(dataset: Dataset, needs_masks: bool, index: int) -> _Looked:
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
