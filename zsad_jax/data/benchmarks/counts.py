"""How many images there are, and how many are published."""

import collections
from collections.abc import Iterable, Mapping

from zsad_jax.data.dataset import Sample

Pair = tuple[int, int]  # numbers of (normal, anomalous) images
Counts = dict[str, dict[str, Pair]]  # split -> category -> numbers
# The same where not all is published: None for a category of which no more than its name is.
Published = Mapping[str, Mapping[str, Pair | None]]
ALL = ""  # in place of a category: the whole split


def count(samples: Iterable[Sample]) -> dict[str, Pair]:
    """Numbers of (normal, anomalous) images per category."""
    labels = collections.defaultdict(list)
    for sample in samples:
        labels[sample.category].append(sample.label)
    return {category: (ones.count(0), ones.count(1)) for category, ones in labels.items()}


def total(categories: Mapping[str, Pair | None]) -> Pair | None:
    """Numbers of (normal, anomalous) images of a whole split; None where they are not published."""
    if ALL in categories:
        return categories[ALL]
    pairs = [pair for pair in categories.values() if pair is not None]
    if len(pairs) < len(categories):
        return None
    return sum(normal for normal, _ in pairs), sum(anomalous for _, anomalous in pairs)


def compare_counts(found: Counts, published: Published) -> list[str]:
    """Every difference between what was found and what is published, a sentence each.

    A split of which nothing is published is not compared, nor are categories where only the whole is. Of a
    category whose name alone is published, there must be images.
    """
    differences = []
    for split, theirs in published.items():
        ours = {name: (n, a) for name, (n, a) in found.get(split, {}).items()}
        unknown = [name for name in ours if name not in theirs] if set(theirs) != {ALL} else []
        for name in (*theirs, *unknown):
            has = total(ours) if name == ALL else ours.get(name)
            expected = theirs.get(name, (0, 0))
            where = f"{split}/{name}" if name else split
            if expected is None and not any(has or ()):
                differences.append(f"{where}: there are no images of this category")
            elif expected is not None and (has or (0, 0)) != expected:
                normal, anomalous = has or (0, 0)
                differences.append(
                    f"{where}: {normal} normal and {anomalous} anomalous images instead of"
                    f" {expected[0]} and {expected[1]}"
                )
    return differences
