"""Numbers of images: found, published, and their differences."""

import collections
from collections.abc import Iterable, Mapping

from zsad_jax.data.dataset import Sample

Pair = tuple[int, int]  # numbers of (normal, anomalous) images
Counts = dict[str, dict[str, Pair]]  # split -> category -> numbers
# The same where not everything is published: None for a category of which only the name is.
Published = Mapping[str, Mapping[str, Pair | None]]
ALL = ""  # in place of a category: the whole split


def count(samples: Iterable[Sample]) -> dict[str, Pair]:
    """Counts the (normal, anomalous) images of each category."""
    labels = collections.defaultdict(list)
    for sample in samples:
        labels[sample.category].append(sample.label)
    return {category: (ones.count(0), ones.count(1)) for category, ones in labels.items()}


def total(categories: Mapping[str, Pair | None]) -> Pair | None:
    """Returns the numbers of (normal, anomalous) images of a whole split; None where not published."""
    if ALL in categories:
        return categories[ALL]
    pairs = [pair for pair in categories.values() if pair is not None]
    if len(pairs) < len(categories):
        return None
    return sum(normal for normal, _ in pairs), sum(anomalous for _, anomalous in pairs)


def compare_counts(found: Counts, published: Published) -> list[str]:
    """Describes every difference between the images found and those published.

    Splits without published counts are not compared, nor are categories where only the total is published.
    A category of which only the name is published must have images.
    """
    differences = []
    for split, theirs in published.items():
        ours = found.get(split, {})
        unknown = [name for name in ours if name not in theirs] if set(theirs) != {ALL} else []
        for name in (*theirs, *unknown):
            normal, anomalous = (total(ours) if name == ALL else ours.get(name)) or (0, 0)
            expected = theirs.get(name, (0, 0))
            where = f"{split}/{name}" if name else split
            if expected is None and not normal + anomalous:
                differences.append(f"{where}: this category has no images")
            elif expected is not None and (normal, anomalous) != expected:
                differences.append(
                    f"{where}: {normal} normal and {anomalous} anomalous images instead of"
                    f" {expected[0]} and {expected[1]}"
                )
    return differences
