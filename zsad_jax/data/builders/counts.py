"""How many images there are, and how many are published."""

import collections
from collections.abc import Iterable

from zsad_jax.data.base import Sample

Counts = dict[str, dict[str, tuple[int, int]]]  # split -> category -> (normal, anomalous)
ALL = ""  # in place of a category: the whole split


def count(samples: Iterable[Sample]) -> dict[str, tuple[int, int]]:
    """Numbers of (normal, anomalous) images per category."""
    labels = collections.defaultdict(list)
    for sample in samples:
        labels[sample.category].append(sample.label)
    return {category: (ones.count(0), ones.count(1)) for category, ones in labels.items()}


def total(categories: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Numbers of (normal, anomalous) images of a whole split."""
    published = categories.get(ALL)
    if published is not None:
        return published
    return sum(n for n, _ in categories.values()), sum(a for _, a in categories.values())


def compare_counts(found: Counts, published: Counts) -> list[str]:
    """Every difference between what was found and what is published, a sentence each.

    A split of which nothing is published is not compared, nor are categories where only the whole is.
    """
    differences = []
    for split, theirs in published.items():
        ours = {name: (n, a) for name, (n, a) in found.get(split, {}).items()}
        pairs = {name: (ours.get(name, (0, 0)), pair) for name, pair in theirs.items()}
        if ALL in theirs:
            pairs[ALL] = (total(ours), theirs[ALL])
        else:
            pairs |= {name: (pair, (0, 0)) for name, pair in ours.items() if name not in theirs}
        differences += [
            f"{split}{f'/{name}' if name else ''}: {has[0]} normal and {has[1]} anomalous images instead of"
            f" {expected[0]} and {expected[1]}"
            for name, (has, expected) in pairs.items()
            if has != expected
        ]
    return differences
