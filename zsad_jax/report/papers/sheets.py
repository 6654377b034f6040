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
GAIN = "gain"  # what the table of gains is called where a table's number is asked for


class Place(NamedTuple):
    """A row of a paper's table.

    Attributes:
      dataset: its key, or that of a mean over datasets.
      category: of the dataset, or "mean".
    """

    dataset: str
    category: str = MEAN


class Competitor(NamedTuple):
    """A column of a paper's table.

    Attributes:
      method: key of the method.
      setting: the ablation or variant, "" for the method as proposed.
      full_shot: what is said of a method that is trained on the dataset's own images; "" for others.
    """

    method: str
    setting: str = ""
    full_shot: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """One metric of one table of a paper.

    Attributes:
      paper: key of the paper.
      table: the paper's number of it.
      metric: as "image_auroc".
      numbers: what is printed, by competitor and place; also what the paper prints elsewhere of the same
        places: full-shot methods, means over datasets.
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
        found = list(dict.fromkeys(competitor for competitor, _ in self.numbers))
        return tuple(sorted(found, key=lambda competitor: bool(competitor.full_shot)))

    @property
    def title(self) -> str:
        """Paper, table, dataset (of a table by category) and metric."""
        number = f"Table {self.table}" if self.table.isdigit() else self.table
        parts = [names.PAPER_METRICS[self.metric]]
        if self.by_category:
            parts.insert(0, names.dataset_name(self.places[0].dataset))
        return f"{names.method_name(self.paper)}, {number}: {', '.join(parts)}"

    @property
    def by_category(self) -> bool:
        """Whether the rows are categories of one dataset."""
        return any(place.category != MEAN for place in self.places)

    def members(self, mean: str) -> tuple[str, ...]:
        """The datasets that a mean over datasets covers here."""
        return mean_members(self.paper, DOMAIN_MEANS[mean], self.metric, self.table)

    def percent(self, competitor: Competitor, place: Place) -> float | None:
        """A number: as printed, or for a mean that is not printed that of its printed members."""
        number = self.numbers.get((competitor, place))
        if number is not None:
            return number.percent
        members = self._recomputed_from(competitor, place)
        return round(sum(n.percent for n in members) / len(members), 1) if members else None

    def doubt(self, competitor: Competitor, place: Place) -> str:
        """Why a number is suspicious, printed or recomputed; "" when it is not."""
        number = self.numbers.get((competitor, place))
        if number is not None:
            return number.doubt
        members = [n for n in self._recomputed_from(competitor, place) if n.suspicious]
        told = ", ".join(names.dataset_name(number.dataset) for number in members)
        return f"the mean has a suspicious member, {told}" if told else ""

    def _recomputed_from(self, competitor: Competitor, place: Place) -> list[PublishedNumber]:
        """The members of a mean that is not printed; [] unless all of them are."""
        if place.dataset not in DOMAIN_MEANS or competitor.full_shot:
            return []
        members = self.members(place.dataset)
        printed = [self.numbers.get((competitor, Place(key))) for key in members]
        found = [number for number in printed if number is not None]
        return found if len(found) == len(members) else []

    def limited_to(self, places: Collection[Place]) -> "Sheet":
        """The same with some of the rows only, and with the columns that have numbers there."""
        numbers = {key: number for key, number in self.numbers.items() if key[1] in places}
        return dataclasses.replace(self, numbers=numbers, places=tuple(places))

    def reference(
        self, method: str, place: Place, *, settings: Collection[str] | None = None
    ) -> float | None:
        """The number that our results of a method are held against.

        Args:
          method: key of the method.
          place: where.
          settings: of which variants; None: the method as proposed.
        """
        for competitor in self.competitors:
            if competitor.method == method and not competitor.full_shot:
                number = next(n for (c, _), n in self.numbers.items() if c == competitor)
                fits = number.main_setting if settings is None else number.setting in settings
                percent = self.percent(competitor, place) if fits else None
                if percent is not None:
                    return percent
        return None


def choose_papers(paper: str | None) -> tuple[str, ...]:
    """The papers by key: one, or all.

    Raises:
      UserError: there is none of that key.
    """
    if paper is not None and paper not in MAIN_TABLES:
        raise UserError(
            f'There are no tables of a paper "{paper}"; known are {_list(MAIN_TABLES)}.'
        )
    return tuple(MAIN_TABLES) if paper is None else (paper,)


def make_sheets(
    paper: str, *, table: str | None = None, everything: bool = False
) -> Iterator[Sheet]:
    """The sheets of a paper, in the order of its tables.

    Args:
      paper: key of the paper.
      table: only this one; any table can be named.
      everything: all tables, and not only those of main results.
    """
    numbers = [number for number in all_numbers() if number.paper == paper]
    for key, metric in dict.fromkeys((number.table, number.metric) for number in numbers):
        main = key in {*MAIN_TABLES[paper][0], *MAIN_TABLES[paper][1]}
        if key == table or (table is None and (main or everything)):
            yield _make_sheet(paper, key, metric, main)


def table_numbers(paper: str) -> tuple[str, ...]:
    """The tables of a paper that can be asked for."""
    printed = dict.fromkeys(number.table for number in all_numbers() if number.paper == paper)
    return (*printed, GAIN)


def check_table(papers: Collection[str], table: str | None) -> None:
    """Makes sure that one of the papers has a table.

    Raises:
      UserError: none has; the sentence names those that there are.
    """
    known = {paper: table_numbers(paper) for paper in papers}
    if table is not None and not any(table in tables for tables in known.values()):
        told = "; ".join(f"{paper} has {_list(tables)}" for paper, tables in known.items())
        raise UserError(f'There is no table "{table}": {told}.')


def _make_sheet(paper: str, table: str, metric: str, main: bool) -> Sheet:
    numbers = [n for n in all_numbers() if (n.paper, n.metric) == (paper, metric)]
    here = [number for number in numbers if number.table == table]
    datasets = list(dict.fromkeys(number.dataset for number in here))
    if any(number.category != MEAN for number in here):
        categories = dict.fromkeys(number.category for number in here)
        ordered = [*(category for category in categories if category != MEAN), MEAN]
        places = tuple(Place(datasets[0], category) for category in ordered)
    else:
        places = _by_domain(datasets, main)
        if main:
            here += [n for n in numbers if n.full_shot or (is_main(n) and n.table != table)]
    chosen = {
        (Competitor(n.method, n.setting, n.full_shot), Place(n.dataset, n.category)): n
        for n in here
        if Place(n.dataset, n.category) in places
    }
    return Sheet(paper=paper, table=table, metric=metric, numbers=chosen, places=places, main=main)


def _by_domain(datasets: list[str], with_means: bool) -> tuple[Place, ...]:
    """Datasets domain by domain, each followed by its mean."""
    places: list[Place] = []
    for mean, domain in DOMAIN_MEANS.items():
        members = [key for key in datasets if key in DATASETS and DATASETS[key].domain == domain]
        if mean in datasets or (with_means and members):
            members.append(mean)
        places += map(Place, members)
    return tuple(places)


def _list(words: Collection[str]) -> str:
    return ", ".join(words)
