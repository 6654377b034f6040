"""The papers' tables, one metric at a time: which methods, and which datasets or categories in which order."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.protocols import DOMAIN_MEANS
from zsad_jax.report import names, wording
from zsad_jax.report.published import (
    MAIN_TABLES,
    USUAL,
    PublishedNumber,
    all_numbers,
    is_main,
    mean_members,
)
from zsad_jax.report.rows import MEAN
from zsad_jax.utils.errors import UserError, did_you_mean, nearest

TITLES = {
    "tipsomaly": "TIPS Over Tricks: Simple Prompts For Effective Zero-Shot Anomaly Detection",
    "vip2clip": "ViP²-CLIP: Visual-Perception Prompting with Unified Alignment for Zero-Shot Anomaly Detection",
    "tps": "Aligning and Prompting Anything for Zero-Shot Generalized Anomaly Detection",
    "faprompt": "Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection",
}
GAIN = "gain"  # the table of gains, where the number of a table is asked for


class Place(NamedTuple):
    """A row of a paper's table: a dataset or mean over datasets by its key, and its category or "mean"."""

    dataset: str
    category: str = MEAN

    @property
    def label(self) -> str:
        """The name of the category, or of the dataset or mean."""
        return wording.member_name(self.dataset, self.category)


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


class Sheet(NamedTuple):
    """One metric of one table of a paper.

    Attributes:
      paper: key of the paper.
      table: the paper's number of it.
      metric: such as "image_auroc".
      main: whether the table holds main results.
      places: the rows.
      columns: the numbers by competitor and place, full-shot methods last. Includes what the paper prints
        elsewhere for the same places, and means of its numbers, with nothing `printed`, that it does not print.
    """

    paper: str
    table: str
    metric: str
    main: bool
    places: tuple[Place, ...]
    columns: Mapping[Competitor, Mapping[Place, PublishedNumber]]

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

    def members(self, place: Place) -> tuple[str, ...]:
        """Returns the datasets that a mean over datasets covers here; of any other place, its own."""
        if place.dataset not in DOMAIN_MEANS:
            return (place.dataset,)
        return mean_members(self.paper, DOMAIN_MEANS[place.dataset], self.metric, self.table)

    def limited_to(self, places: Collection[Place]) -> "Sheet":
        """Returns a sheet with some of the rows, and the columns that have numbers there."""
        columns = {
            competitor: kept
            for competitor, numbers in self.columns.items()
            if (kept := {place: numbers[place] for place in places if place in numbers})
        }
        return self._replace(places=tuple(places), columns=columns)

    def reference(self, method: str, place: Place, training: str = USUAL) -> float | None:
        """Returns the number to compare our results of a method with, by the training."""
        found = (
            numbers[place].percent
            for competitor, numbers in self.columns.items()
            if competitor.method == method and place in numbers and not competitor.full_shot
            # A table of ablations has several lines of a method, and one of them is the method as proposed.
            if (competitor.proposed if training == USUAL else competitor.training == training)
        )
        return next(found, None)


def choose_papers(paper: str | None, table: str | None = None) -> tuple[str, ...]:
    """Returns the papers by key: one, or all. Rejects an unknown paper, and a table that none has."""
    if paper is not None and paper not in MAIN_TABLES:
        raise UserError(f"Unknown paper {paper!r}. Available: {', '.join(MAIN_TABLES)}.")
    papers = tuple(MAIN_TABLES) if paper is None else (paper,)
    known = {
        key: [*dict.fromkeys(n.table for n in all_numbers() if n.paper == key), GAIN]
        for key in papers
    }
    if table is not None and not any(table in numbers for numbers in known.values()):
        available = "; ".join(f"{', '.join(numbers)} of {key}" for key, numbers in known.items())
        # Of the names alone: a number resembles others by chance.
        words = {one for numbers in known.values() for one in numbers if not one.isdigit()}
        hint = did_you_mean(nearest(table, sorted(words))) or f"Available: {available}."
        raise UserError(f"Unknown table {table!r}. {hint}")
    return papers


def make_sheets(
    paper: str, *, table: str | None = None, everything: bool = False
) -> Iterator[Sheet]:
    """Yields the sheets of a paper's main tables in their order; of one table, or of `everything`."""
    numbers = [number for number in all_numbers() if number.paper == paper]
    for key, metric in dict.fromkeys((number.table, number.metric) for number in numbers):
        main = key in {*MAIN_TABLES[paper][0], *MAIN_TABLES[paper][1]}
        if key == table or (table is None and (main or everything)):
            yield _make_sheet(key, [n for n in numbers if n.metric == metric], main)


def _make_sheet(table: str, numbers: Collection[PublishedNumber], main: bool) -> Sheet:
    """Makes the sheet of a table from all of its paper's numbers of a metric."""
    here = [number for number in numbers if number.table == table]
    datasets = list(dict.fromkeys(number.dataset for number in here))
    categories = list(dict.fromkeys(n.category for n in here if n.category != MEAN))
    if categories:
        places = tuple(Place(datasets[0], category) for category in (*categories, MEAN))
    else:
        places = _by_domain(datasets, main)
        # Papers print means and full-shot methods in other tables, too.
        if main:
            here += [n for n in numbers if n.full_shot or (is_main(n) and n.table != table)]
    columns: dict[Competitor, dict[Place, PublishedNumber]] = {}
    for n in here:
        competitor = Competitor(n.method, n.setting, n.full_shot, n.proposed, n.training)
        if Place(n.dataset, n.category) in places:
            columns.setdefault(competitor, {})[Place(n.dataset, n.category)] = n
    columns = dict(sorted(columns.items(), key=lambda item: bool(item[0].full_shot)))
    sheet = Sheet(here[0].paper, table, here[0].metric, main, places, columns)
    for place in places:
        for competitor, found in columns.items():
            if place.dataset in DOMAIN_MEANS and place not in found and not competitor.full_shot:
                keys = sheet.members(place)
                members = [found[Place(key)] for key in keys if Place(key) in found]
                # A mean over fewer datasets cannot be compared with those of the other columns.
                if members and len(members) == len(keys):
                    found[place] = _mean_of(members, place)
    return sheet


def _mean_of(members: Sequence[PublishedNumber], place: Place) -> PublishedNumber:
    doubtful = ", ".join(names.dataset_name(number.dataset) for number in members if number.doubt)
    return members[0]._replace(
        percent=round(sum(number.percent for number in members) / len(members), 1),
        printed="",
        dataset=place.dataset,
        doubt=f"the mean includes a suspicious number ({doubtful})" if doubtful else "",
        reading="",
        gain="",
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
