"""The numbers that the papers print."""

import csv
import functools
import importlib.resources
from typing import NamedTuple

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.protocols import DOMAIN_MEANS
from zsad_jax.report.rows import MEAN

# Where each paper prints its main results: the tables of dataset means, and those of categories.
# The other tables repeat these numbers or hold ablations.
MAIN_TABLES = {
    "tipsomaly": (("1",), ()),
    "vip2clip": (("1", "2"), tuple(str(table) for table in range(10, 22))),
    "tps": (("1", "2"), ()),
    "faprompt": (("1", "2"), tuple(str(table) for table in range(9, 17))),
}
# Where a paper prints its means over datasets, if not in the tables of those datasets, …
TABLE_OF_MEANS = {"faprompt": "3"}
# … and the datasets that it excludes from them.
NOT_IN_MEANS = {"faprompt": ("mvtec_ad",)}

USUAL = "common"  # protocol: MVTec AD trains for all others and VisA for it, as in the papers' main results


class PublishedNumber(NamedTuple):
    """A number in a paper's table.

    Attributes:
      percent: 0 to 100.
      printed: the digits as printed.
      paper, method: their keys.
      table: the paper's number of the table.
      dataset: key of the dataset, or of a mean over datasets (`DOMAIN_MEANS`).
      category: of the dataset, or "mean".
      metric: such as "image_auroc".
      setting: the ablation or variant; "" for a plain result.
      proposed: whether it is of the method as proposed, possibly as one line of an ablation.
      training: the protocol by which the method was trained.
      doubt: why the number is suspicious (most likely misprinted or exchanged); "" if it is not.
      full_shot: says that the method is trained on the dataset's own normal images; "" for others.
      reading: how the printed characters were read, where that is not evident.
      gain: the gain over the best prior method that the paper prints beside it; "" if none.
    """

    percent: float
    printed: str
    paper: str
    table: str
    method: str
    dataset: str
    category: str
    metric: str
    setting: str = ""
    proposed: bool = True
    training: str = USUAL
    doubt: str = ""
    full_shot: str = ""
    reading: str = ""
    gain: str = ""


def published_numbers(
    method: str, dataset: str, category: str = MEAN
) -> dict[str, PublishedNumber]:
    """Returns the main results on a dataset that a method's own paper prints, or the first that prints any.

    They are by metric; {} if none is printed. The dataset may be a mean over datasets ("industrial_mean").
    The papers' AUPRO uses 200 thresholds like our `pixel_aupro_200step`.
    """
    numbers = _main_results().get((method, dataset, category), [])
    # Papers disagree on competitors, so numbers of different papers are never mixed.
    papers = [number.paper for number in numbers]
    paper = method if method in papers else next(iter(papers), "")
    return {number.metric: number for number in numbers if number.paper == paper}


@functools.cache
def paper_of(method: str) -> str | None:
    """Returns the paper to compare a method with: its own, or the first that prints the method."""
    if method in MAIN_TABLES:
        return method
    return next((n.paper for n in all_numbers() if n.method == method and is_main(n)), None)


@functools.cache
def mean_members(paper: str, domain: str, metric: str, table: str | None = None) -> tuple[str, ...]:
    """Returns the datasets that a paper's mean over a domain covers, in the order of its table.

    By default, the table is that of the main results. The datasets differ by the level of the metric.
    """
    printed = [n for n in all_numbers() if n.paper == paper and n.metric == metric]
    here = [n.dataset for n in printed if n.table == table and n.dataset not in DOMAIN_MEANS]
    if not here:  # a table of nothing but means
        here = [n.dataset for n in printed if is_main(n) and n.dataset not in DOMAIN_MEANS]
    excluded = NOT_IN_MEANS.get(paper, ())
    return tuple(
        key for key in dict.fromkeys(here) if DATASETS[key].domain == domain and key not in excluded
    )


def is_main(number: PublishedNumber) -> bool:
    """Returns whether a number is one of its paper's main results, not a repetition or an ablation."""
    means, categories = MAIN_TABLES[number.paper]
    if number.setting or number.full_shot:
        return False
    # Other tables of the paper may repeat its means.
    if number.dataset in DOMAIN_MEANS and number.paper in TABLE_OF_MEANS:
        return number.table == TABLE_OF_MEANS[number.paper]
    return number.table in (means if number.category == MEAN else categories)


@functools.cache
def all_numbers() -> tuple[PublishedNumber, ...]:
    """Returns every number of the collection, in the order of the papers and their tables."""
    source = importlib.resources.files("zsad_jax.report") / "papers" / "published.csv"
    with source.open(encoding="utf-8") as file:
        return tuple(
            PublishedNumber(float(row["printed"]), **row | {"proposed": row["proposed"] == "yes"})
            for row in csv.DictReader(file)
        )


@functools.cache
def trainings() -> tuple[str, ...]:
    """Returns the protocols by which published methods were trained, the usual one first."""
    return tuple(dict.fromkeys((USUAL, *(number.training for number in all_numbers()))))


@functools.cache
def _main_results() -> dict[tuple[str, str, str], list[PublishedNumber]]:
    """Returns main results by (method, dataset, category)."""
    results: dict[tuple[str, str, str], list[PublishedNumber]] = {}
    for n in filter(is_main, all_numbers()):
        results.setdefault((n.method, n.dataset, n.category), []).append(n)
    return results
