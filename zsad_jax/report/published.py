"""The numbers that the papers themselves print, to stand beside our own."""

import csv
import functools
import importlib.resources
import re
from typing import NamedTuple

from zsad_jax.data.protocols import DATASETS
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
# … and what it leaves out of them.
NOT_IN_MEANS = {"faprompt": ("mvtec_ad",)}
DOMAIN_MEANS = {"industrial_mean": "industrial", "medical_mean": "medical"}

_TAGS = re.compile(r"; (?=ablation:|variant:|suspicious:|printed |full-shot)")


class PublishedNumber(NamedTuple):
    """A cell of a paper's table, as printed.

    Attributes:
      percent: the number, 0 to 100.
      note: what the source of the number says about it, "" if nothing.
      paper: key of the paper that prints it.
      table: the paper's number of the table.
      method: key of the method.
      dataset: key of the dataset, or of a mean over datasets (`DOMAIN_MEANS`).
      category: of the dataset, or "mean".
      metric: as "image_auroc".
      printed: the digits.
    """

    percent: float
    note: str
    paper: str
    table: str
    method: str
    dataset: str
    category: str
    metric: str
    printed: str

    @property
    def setting(self) -> str:
        """Which ablation or variant the number is of; "" for a plain result."""
        return self._tag("ablation", "variant")

    @property
    def doubt(self) -> str:
        """Why the number does not fit with others (misprinted or exchanged, most likely); "" if it does."""
        return self._tag("suspicious")

    @property
    def suspicious(self) -> bool:
        """Whether the number does not fit with others."""
        return bool(self.doubt)

    @property
    def full_shot(self) -> str:
        """What is said of a method that is trained on the dataset's own normal images; "" for others."""
        return self._tag("full-shot")

    @property
    def reading(self) -> str:
        """What is said of the printed characters themselves."""
        return self._tag("printed ")

    @property
    def main_setting(self) -> bool:
        """Whether the number is of the method as proposed, be it as one line of an ablation."""
        return not self.setting or self.setting.endswith(("(full model)", "(the default)"))

    def _tag(self, *starts: str) -> str:
        return next((tag for tag in _TAGS.split(self.note) if tag.startswith(starts)), "")


def published_numbers(
    method: str, dataset: str, category: str = MEAN, *, paper: str | None = None
) -> dict[str, PublishedNumber]:
    """What a paper prints for a method on a dataset, main results only.

    Args:
      method: key of the method ("tipsomaly").
      dataset: key of the dataset ("mvtec_ad"), or of a mean over datasets ("industrial_mean").
      category: a category, or "mean" for the mean over the dataset.
      paper: key of the paper to read. By default the method's own; for a method without one here,
        the first paper that prints it as a baseline.

    Returns:
      Numbers by metric key (image_auroc, …, pixel_aupro); {} when none is printed. The papers' AUPRO
      comes from 200 thresholds, our `pixel_aupro_200step`.
    """
    papers = _main_results().get((method, dataset, category), {})
    if paper is None:
        paper = method if method in papers else next(iter(papers), "")
    return dict(papers.get(paper, {}))


@functools.cache
def paper_of(method: str) -> str | None:
    """The paper that a method's results are held against: its own, or the first that prints it."""
    if method in MAIN_TABLES:
        return method
    return next((n.paper for n in all_numbers() if n.method == method and is_main(n)), None)


@functools.cache
def mean_members(paper: str, domain: str, metric: str, table: str | None = None) -> tuple[str, ...]:
    """The datasets that a paper's mean over a domain covers, in the paper's order.

    Args:
      paper: key of the paper.
      domain: "industrial" or "medical".
      metric: as "image_auroc"; the datasets differ by level.
      table: the table that prints the mean; by default the paper's main results.
    """
    printed = [n for n in all_numbers() if n.paper == paper and n.metric == metric]
    here = [n.dataset for n in printed if n.table == table and n.dataset not in DOMAIN_MEANS]
    if not here:  # a table of nothing but means
        here = [n.dataset for n in printed if is_main(n) and n.dataset not in DOMAIN_MEANS]
    left_out = NOT_IN_MEANS.get(paper, ())
    return tuple(
        key for key in dict.fromkeys(here) if DATASETS[key].domain == domain and key not in left_out
    )


def is_main(number: PublishedNumber) -> bool:
    """Whether a number is one of its paper's main results, and not a repetition or an ablation."""
    means, categories = MAIN_TABLES[number.paper]
    if number.setting or number.full_shot:
        return False
    if number.dataset in DOMAIN_MEANS and number.paper in TABLE_OF_MEANS:
        return number.table == TABLE_OF_MEANS[number.paper]
    return number.table in (means if number.category == MEAN else categories)


@functools.cache
def all_numbers() -> tuple[PublishedNumber, ...]:
    """Every number of the collection, in the order of the papers and their tables."""
    source = importlib.resources.files("zsad_jax.report") / "papers" / "published.csv"
    with source.open(encoding="utf-8") as file:
        return tuple(
            PublishedNumber(
                float(row["value"]),
                row["note"],
                row["paper"],
                row["table"],
                row["method"],
                row["dataset"],
                row["category"],
                f"{row['level']}_{row['metric']}",
                row["value"],
            )
            for row in csv.DictReader(file)
        )


@functools.cache
def _main_results() -> dict[tuple[str, str, str], dict[str, dict[str, PublishedNumber]]]:
    """Main results by (method, dataset, category), then paper, then metric key."""
    results: dict[tuple[str, str, str], dict[str, dict[str, PublishedNumber]]] = {}
    for number in filter(is_main, all_numbers()):
        papers = results.setdefault((number.method, number.dataset, number.category), {})
        papers.setdefault(number.paper, {})[number.metric] = number
    return results
