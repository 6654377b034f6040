"""The numbers that the papers themselves print, to stand beside our own."""

import csv
import functools
import importlib.resources
from typing import NamedTuple

from zsad_jax.report.rows import MEAN

# Where each paper prints its main results: the tables of dataset means, and those of categories.
# The other tables repeat these numbers or hold ablations.
MAIN_TABLES = {
    "tipsomaly": (("1",), ()),
    "vip2clip": (("1", "2"), tuple(str(table) for table in range(10, 22))),
    "tps": (("1", "2"), ()),
    "faprompt": (("1", "2"), tuple(str(table) for table in range(9, 17))),
}


class PublishedNumber(NamedTuple):
    """A cell of a paper's table, as printed.

    Attributes:
      percent: the number, 0 to 100.
      note: what the source of the number says about it, "" if nothing.
      paper: key of the paper that prints it.
    """

    percent: float
    note: str
    paper: str

    @property
    def suspicious(self) -> bool:
        """Whether the number does not fit with others (misprinted or exchanged, most likely)."""
        return any(tag.strip().startswith("suspicious") for tag in self.note.split(";"))


def published_numbers(
    method: str, dataset: str, category: str = MEAN, *, paper: str | None = None
) -> dict[str, PublishedNumber]:
    """What a paper prints for a method on a dataset, main results only.

    Args:
      method: key of the method ("tipsomaly").
      dataset: key of the dataset ("mvtec_ad").
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


Key = tuple[str, str, str]  # method, dataset, category


@functools.cache
def _main_results() -> dict[Key, dict[str, dict[str, PublishedNumber]]]:
    """Main results by (method, dataset, category), then paper, then metric key."""
    results: dict[Key, dict[str, dict[str, PublishedNumber]]] = {}
    source = importlib.resources.files("zsad_jax.report") / "assets" / "published.csv"
    with source.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not _is_main_result(row):
                continue
            papers = results.setdefault((row["method"], row["dataset"], row["category"]), {})
            papers.setdefault(row["paper"], {})[f"{row['level']}_{row['metric']}"] = (
                PublishedNumber(float(row["value"]), row["note"], row["paper"])
            )
    return results


def _is_main_result(row: dict[str, str]) -> bool:
    means, categories = MAIN_TABLES[row["paper"]]
    tables = means if row["category"] == MEAN else categories
    return row["table"] in tables and not row["note"].startswith(("ablation", "variant"))
