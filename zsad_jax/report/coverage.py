"""Whether results are of the published images and setting; only then are they compared with the papers'."""

from collections.abc import Iterable, Mapping
from typing import Any

from zsad_jax.data.protocols import BOTH, DATASETS, About
from zsad_jax.report.published import published_numbers
from zsad_jax.report.rows import MEAN, Row
from zsad_jax.report.training import describe_setting

WITHOUT_MASK = "anomalous_without_mask"  # key of run.json: how many images, by dataset
SETTING = "setting"
Partial = dict[tuple[str, str], tuple[str, ...]]  # sentences by (dataset, level or SETTING)


def find_partial(rows: Iterable[Row], run: Mapping[str, Any] | None = None) -> Partial:
    """Returns sentences on datasets of which other images or settings were evaluated than are published.

    Images that could not be read were not evaluated. A dataset of which nothing is published is not told.

    Args:
      rows: results of a method, any datasets with their categories and means.
      run: run.json. The anomalous images without a mask are missing in pixel metrics only.
    """
    run = run or {}
    categories: dict[str, set[str]] = {}
    means = {}
    for row in rows:
        if row["category"] == MEAN:
            means[row["dataset"]] = row
        else:
            categories.setdefault(row["dataset"], set()).add(row["category"])
    partial: Partial = {}
    for dataset, row in means.items():
        about = DATASETS.get(dataset)
        words = _compare(about, row, len(categories.get(dataset, ()))) if about else []
        if about and words:
            told = f"{about.title}: {', '.join(words)} were evaluated."
            partial |= {(dataset, level): (told,) for level in BOTH}
        unmasked = run.get(WITHOUT_MASK, {}).get(dataset)
        if about and unmasked and "pixel" in about.levels:
            told = (
                f"{about.title}: {unmasked} of {row['n_anomalous']} anomalous images have no mask."
            )
            partial[dataset, "pixel"] = (*partial.get((dataset, "pixel"), ()), told)
        setting = describe_setting(row, run)
        if setting and published_numbers(row["method"], dataset):
            partial[dataset, SETTING] = (setting,)
    return partial


def words_on(partial: Partial, dataset: str) -> list[str]:
    """Returns all sentences on the images of a dataset, each once."""
    told = (sentence for level in BOTH for sentence in partial.get((dataset, level), ()))
    return list(dict.fromkeys(told))


def is_partial(partial: Partial, dataset: str, metric: str) -> bool:
    """Returns whether a metric is of other images or of another setting than is published."""
    return any((dataset, part) in partial for part in (metric.split("_")[0], SETTING))


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
