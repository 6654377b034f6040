"""Whether all published images of a dataset were evaluated; only then are results held against the papers'."""

from collections.abc import Iterable

from zsad_jax.data.protocol import DATASETS, About
from zsad_jax.report.rows import MEAN, Row


def find_partial(rows: Iterable[Row]) -> dict[str, str]:
    """The datasets of which other images were evaluated than are published, each with a sentence on it.

    Images that could not be read were not evaluated. A dataset of which nothing is published is not told.

    Args:
      rows: results of a method, any datasets with their categories and means.
    """
    categories: dict[str, set[str]] = {}
    means = {}
    for row in rows:
        if row["category"] == MEAN:
            means[row["dataset"]] = row
        else:
            categories.setdefault(row["dataset"], set()).add(row["category"])
    partial = {}
    for dataset, row in means.items():
        about = DATASETS.get(dataset)
        words = _compare(about, row, len(categories.get(dataset, ()))) if about else []
        if about and words:
            partial[dataset] = f"{about.title}: {', '.join(words)} were evaluated."
    return partial


def _compare(about: About, mean: Row, num_categories: int) -> list[str]:
    """What differs: numbers of categories (0: none is told) and of images."""
    words = []
    if about.num_categories and num_categories:
        words += _count(num_categories, about.num_categories, "categories")
    if about.published is not None:
        normal, anomalous = about.published
        images = _count(mean["n_images"], normal + anomalous, "images")
        words += images or _count(mean["n_anomalous"], anomalous, "anomalous images")
    return words


def _count(found: int, published: int, what: str) -> list[str]:
    if found == published:
        return []
    if found < published:
        return [f"{found} of {published} {what}"]
    return [f"{found} {what} instead of {published}"]
