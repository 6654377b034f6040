"""The papers' tables, one metric at a time: which methods, and which datasets or categories in which order."""

import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import NamedTuple

from zsad_jax.data.protocols import DATASETS
from zsad_jax.report import names
from zsad_jax.report.published import (
    DOMAIN_MEANS,
    MAIN_TABLES,
    USUAL,
    PublishedNumber,
    all_numbers,
    is_main,
    mean_members,
)
from zsad_jax.report.rows import MEAN
from zsad_jax.utils.errors import UserError

TITLES = {
    "tipsomaly": "TIPS Over Tricks: Simple Prompts For Effective Zero-Shot Anomaly Detection",
    "vip2clip": "ViP²-CLIP: Visual-Perception Prompting with Unified Alignment for Zero-Shot Anomaly Detection",
    "tps": "Aligning and Prompting Anything for Zero-Shot Generalized Anomaly Detection",
    "faprompt": "Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection",
}
GAIN = "gain"  # the table of gains, where the number of a table is asked for


class Place(NamedTuple):
    """A row of a paper's table.

    Attributes:
      dataset: its key, or that of a mean over datasets.
      category: of the dataset, or "mean".
    """

    dataset: str
    category: str = MEAN

    @property
    def label(self) -> str:
        """The name of the category, or of the dataset or mean."""
        if self.category != MEAN:
            return names.category_name(self.category)
        return names.dataset_name(self.dataset)


class Competitor(NamedTuple):
    """A column of a paper's table; fields as in `PublishedNumber`."""

    method: str
    setting: str = ""
    full_shot: str = ""
    proposed: bool = True
    training: str = USUAL

    @property
    def name(self) -> str:
        """The method with its ablation or variant."""
        name = names.method_name(self.method)
        return f"{name}, {self.setting}" if self.setting else name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """One metric of one table of a paper.

    Attributes:
      paper: key of the paper.
      table: the paper's number of it.
      metric: such as "image_auroc".
      numbers: what is printed, by competitor and place. Includes what the paper prints elsewhere for the
        same places: full-shot methods, means over datasets.
      places: the rows.
      main: whether the table holds main results.
    """

    paper: str
    table: str
    metric: str
    numbers: dict[tuple[Competitor, Place], PublishedNumber]
    places: tuple[Place, ...]
    main: bool

    @functools.cached_property
    def competitors(self) -> tuple[Competitor, ...]:
        """The columns, full-shot methods last."""
        found = dict.fromkeys(competitor for competitor, _ in self.numbers)
        return tuple(sorted(found, key=lambda competitor: bool(competitor.full_shot)))

    @property
    def title(self) -> str:
        """Paper, table, dataset (of a table by category) and metric."""
        number = f"Table {self.table}" if self.table.isdigit() else self.table
        parts = [names.dataset_name(self.places[0].dataset)] * self.by_category
        parts.append(names.PAPER_METRICS[self.metric])
        return f"{names.method_name(self.paper)}, {number}: {', '.join(parts)}"

    @property
    def by_category(self) -> bool:
        """Whether the rows are categories of one dataset."""
        return any(place.category != MEAN for place in self.places)

    def members(self, mean: str) -> tuple[str, ...]:
        """Returns the datasets that a mean over datasets covers here."""
        return mean_members(self.paper, DOMAIN_MEANS[mean], self.metric, self.table)

    def percent(self, competitor: Competitor, place: Place) -> float | None:
        """Returns a number as printed; for a mean that is not printed, the mean of its printed members."""
        number = self.numbers.get((competitor, place))
        if number is not None:
            return number.percent
        members = self._recomputed_from(competitor, place)
        return round(sum(n.percent for n in members) / len(members), 1) if members else None

    def doubt(self, competitor: Competitor, place: Place) -> str:
        """Returns why a number is suspicious, printed or recomputed; "" when it is not."""
        number = self.numbers.get((competitor, place))
        if number is not None:
            return number.doubt
        members = self._recomputed_from(competitor, place)
        told = ", ".join(names.dataset_name(number.dataset) for number in members if number.doubt)
        return f"the mean has a suspicious member, {told}" if told else ""

    def _recomputed_from(self, competitor: Competitor, place: Place) -> list[PublishedNumber]:
        """Returns the members of a mean that is not printed; [] unless all of them are."""
        if place.dataset not in DOMAIN_MEANS or competitor.full_shot:
            return []
        members = self.members(place.dataset)
        printed = [self.numbers.get((competitor, Place(key))) for key in members]
        found = [number for number in printed if number is not None]
        return found if len(found) == len(members) else []

    def limited_to(self, places: Collection[Place]) -> "Sheet":
        """Returns a sheet with some of the rows, and the columns that have numbers there."""
        numbers = {key: number for key, number in self.numbers.items() if key[1] in places}
        return dataclasses.replace(self, numbers=numbers, places=tuple(places))

    def reference(self, method: str, place: Place, training: str = USUAL) -> float | None:
        """Returns the number to compare our results of a method with, by the training."""
        for competitor in self.competitors:
            same = competitor.training == training if training != USUAL else competitor.proposed
            if competitor.method == method and same and not competitor.full_shot:
                percent = self.percent(competitor, place)
                if percent is not None:
                    return percent
        return None


def choose_papers(paper: str | None) -> tuple[str, ...]:
    """Returns the papers by key: one, or all.

    Raises:
      UserError: there is none of that key.
    """
    if paper is not None and paper not in MAIN_TABLES:
        raise UserError(
            f'There are no tables of a paper "{paper}"; known are {", ".join(MAIN_TABLES)}.'
        )
    return tuple(MAIN_TABLES) if paper is None else (paper,)


def check_table(papers: Collection[str], table: str | None) -> None:
    """Checks that one of the papers has a table.

    Raises:
      UserError: none has; the message lists those that there are.
    """
    known = {
        paper: [*dict.fromkeys(n.table for n in all_numbers() if n.paper == paper), GAIN]
        for paper in papers
    }
    if table is not None and not any(table in tables for tables in known.values()):
        told = "; ".join(f"{paper} has {', '.join(tables)}" for paper, tables in known.items())
        raise UserError(f'There is no table "{table}": {told}.')


def make_sheets(
    paper: str, *, table: str | None = None, everything: bool = False
) -> Iterator[Sheet]:
    """Yields the sheets of a paper, in the order of its tables.

    Args:
      paper: key of the paper.
      table: only this one; any table can be named.
      everything: all tables, not only those of main results.
    """
    numbers = [number for number in all_numbers() if number.paper == paper]
    for key, metric in dict.fromkeys((number.table, number.metric) for number in numbers):
        main = key in {*MAIN_TABLES[paper][0], *MAIN_TABLES[paper][1]}
        if key == table or (table is None and (main or everything)):
            yield _make_sheet(key, [n for n in numbers if n.metric == metric], main)


def _make_sheet(table: str, numbers: Collection[PublishedNumber], main: bool) -> Sheet:
    """Makes the sheet of a table from all of its paper's numbers of a metric."""
    here = [number for number in numbers if number.table == table]
    datasets = list(dict.fromkeys(number.dataset for number in here))
    categories = dict.fromkeys(number.category for number in here)
    if set(categories) != {MEAN}:
        ordered = [*(category for category in categories if category != MEAN), MEAN]
        places = tuple(Place(datasets[0], category) for category in ordered)
    else:
        places = _by_domain(datasets, main)
        if main:
            here += [n for n in numbers if n.full_shot or (is_main(n) and n.table != table)]
    chosen = {}
    for n in here:
        competitor = Competitor(n.method, n.setting, n.full_shot, n.proposed, n.training)
        if Place(n.dataset, n.category) in places:
            chosen[competitor, Place(n.dataset, n.category)] = n
    return Sheet(
        paper=here[0].paper,
        table=table,
        metric=here[0].metric,
        numbers=chosen,
        places=places,
        main=main,
    )


def _by_domain(datasets: list[str], with_means: bool) -> tuple[Place, ...]:
    """Returns datasets domain by domain, each followed by its mean."""
    places: list[Place] = []
    for mean, domain in DOMAIN_MEANS.items():
        members = [key for key in datasets if key in DATASETS and DATASETS[key].domain == domain]
        if mean in datasets or (with_means and members):
            members.append(mean)
        places += map(Place, members)
    return tuple(places)
