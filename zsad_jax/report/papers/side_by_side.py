"""A paper's tables with our results in further columns, and the gains over the best prior method."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.protocols import DOMAIN_MEANS
from zsad_jax.metrics import AUPRO_200STEP
from zsad_jax.metrics.result import missing_class
from zsad_jax.report import names, wording
from zsad_jax.report.compare import words_on
from zsad_jax.report.papers.sheets import GAIN, Competitor, Place, Sheet
from zsad_jax.report.papers.workdirs import Ours
from zsad_jax.report.published import PublishedNumber, all_numbers
from zsad_jax.report.rows import MEAN, STD_OF, Row, level_of, spread_over_seeds
from zsad_jax.report.tables import (
    BEST_PRIOR,
    DOUBT,
    EMPTY,
    PAPER_METRIC,
    SAME_METHOD,
    UNDEFINED,
    Cell,
    Column,
    Keys,
    Line,
    Table,
    percent,
)

OUR_METRIC = {paper: ours for ours, paper in PAPER_METRIC.items() if paper}
PUBLISHED, FULL_SHOT, OURS = "published", "published, full-shot", "ours"  # groups of columns


def make_table(sheet: Sheet, ours: Sequence[Ours]) -> Table:
    """Makes a table of one metric, our columns at the right.

    Ours has the difference to what the paper prints for the same method, if both are of the same images,
    setting and training.
    """
    doubts: dict[tuple[str, str], list[str]] = {}
    lines = []
    for place in sheet.places:
        summary = place.dataset in DOMAIN_MEANS or (sheet.by_category and place.category == MEAN)
        label = "Mean" if summary and place.dataset in DATASETS else place.label
        cells = []
        for competitor, numbers in sheet.columns.items():
            number = numbers.get(place)
            cells.append(_published_cell(sheet, competitor, number) if number else EMPTY)
            if number and number.doubt:
                doubts.setdefault((competitor.name, number.doubt), []).append(place.label)
        for one in ours:
            reference = sheet.reference(one.method, place, one.training)
            # With no number for our training, a footnote explains why the usual one is not compared.
            usual = sheet.reference(one.method, place)
            other_training = reference is None and usual is not None
            cells.append(_our_cell(sheet, one, place, reference, training=other_training))
        keys = (("dataset", place.dataset), ("category", place.category))
        lines.append(Line((label,), tuple(cells), _excluded(sheet, place), summary, keys))
    remarks = [
        f"{DOUBT} {name}, {', '.join(places)}: {doubt}." for (name, doubt), places in doubts.items()
    ]
    return Table(
        title=sheet.title,
        head=("Category" if sheet.by_category else "Dataset",),
        columns=(*map(_published_column, sheet.columns), *map(_our_column, ours)),
        lines=tuple(lines),
        compared=SAME_METHOD,
        remarks=(*remarks, *_sources_of_full_shot(sheet)),
        keys=(("paper", sheet.paper), ("table", sheet.table), *_metric_keys(sheet.metric)),
    )


def make_gain_table(paper: str, sheets: Sequence[Sheet], ours: Sequence[Ours]) -> Table:
    """Makes a table of the means over each domain, compared with the best method before the paper's own.

    `sheets` are the paper's tables of main results. Our means over other datasets, or of another training,
    have no gain.
    """
    printed = printed_gains(paper)
    means = [(Place(mean), sheet) for mean in DOMAIN_MEANS for sheet in sheets]
    lines, remarks = [], []
    for place, sheet in means:
        if place not in sheet.places:
            continue
        prior = [
            numbers[place]
            for competitor, numbers in sheet.columns.items()
            if competitor.method != paper and not competitor.full_shot and place in numbers
        ]
        # As in the papers, the best may differ between metrics and domains.
        best = max(prior, key=lambda number: number.percent)
        labels = [place.label, names.PAPER_METRICS[sheet.metric], names.method_name(best.method)]
        if best.doubt:
            remarks.append(f"{DOUBT} {', '.join(labels)}: {best.doubt}.")
        if printed:
            labels.append(printed.get((place.dataset, sheet.metric), UNDEFINED))
        cells = [
            Cell(best.percent, doubt=bool(best.doubt)),
            Cell(sheet.reference(paper, place), reference=best.percent),
            *(_our_cell(sheet, one, place, best.percent, training=True) for one in ours),
        ]
        keys = (("dataset", place.dataset), *_metric_keys(sheet.metric))
        lines.append(Line(tuple(labels), tuple(cells), keys=keys))
    name = names.method_name(paper)
    own = Column(name, PUBLISHED, name, (("method", paper), ("source", PUBLISHED)))
    best_prior = Column("best prior", PUBLISHED, "best prior")
    return Table(
        title=f"{name}: gain over the best prior method",
        head=("Mean", "Metric", "Best prior method", *["Published gain"] * bool(printed)),
        columns=(best_prior, own, *map(_our_column, ours)),
        lines=tuple(lines),
        compared=BEST_PRIOR,
        remarks=tuple(remarks),
        keys=(("paper", paper), ("table", GAIN), ("category", MEAN)),
    )


def printed_gains(paper: str) -> dict[tuple[str, str], str]:
    """Returns the gains that a paper itself prints, by mean and metric."""
    return {(n.dataset, n.metric): n.gain for n in all_numbers() if n.paper == paper and n.gain}


def _our_column(ours: Ours) -> Column:
    keys = (("method", ours.method), ("setting", ours.setting), ("source", OURS))
    remark = (("note", ours.remark),) if ours.remark else ()
    return Column(ours.name, OURS, f"{OURS}: {ours.name}", keys + remark)


def _metric_keys(metric: str) -> Keys:
    level = level_of(metric)
    return ("level", level), ("metric", metric.removeprefix(f"{level}_"))


def _our_cell(
    sheet: Sheet, ours: Ours, place: Place, reference: float | None, *, training: bool
) -> Cell:
    """Returns our number with the difference to a published one, unless images, setting or training differ.

    Another training counts only if `training` is True: the published number may be of the same one.
    """
    value = _our_value(sheet, ours, place)
    if value is None:
        return EMPTY
    words = list(value.words)
    if training and value.percent is not None:
        members = sheet.members(place)
        words += words_on(ours.deviations, members, sheet.metric, kinds=("training",))
    cell = Cell(value.percent, spread=value.spread, footnotes=tuple(words))
    return cell if words else cell._replace(reference=reference)


class _Value(NamedTuple):
    """A number in percent (None: undefined) and its spread; sentences against a comparison with the paper's."""

    percent: float | None
    words: Sequence[str] = ()
    spread: float | None = None


def _our_value(sheet: Sheet, ours: Ours, place: Place) -> _Value | None:
    """Returns our number at a place, with words on images and setting; None without a result."""
    metric = OUR_METRIC[sheet.metric]
    if place.dataset in DOMAIN_MEANS:
        own = [Place(key) for key in sheet.members(place)]
        members = {one: _our_value(sheet, ours, one) for one in own}
        if not any(members.values()):
            return None
        defined = {key: v for key, v in members.items() if v and v.percent is not None}
        # Of unrounded values: rounding comes last.
        rows = [ours.rows[key] for key in defined]
        mean = float(np.mean([row[metric] for row in rows])) if rows else None
        spread = percent(spread_over_seeds(rows, metric))
        gaps = [wording.sentence(gap) for gap in _coverage(members, "datasets")]
        words = [*gaps, *(w for v in defined.values() for w in v.words)]
        return _Value(percent(mean), words, spread)
    row = ours.rows.get(place)
    if row is None:
        return None
    if row[metric] is None:
        return _Value(None, (wording.sentence(f"{place.label}: {_why_undefined(row, metric)}"),))
    words = words_on(ours.deviations, (place.dataset,), metric, kinds=("images", "setting"))
    if place.category == MEAN:
        own = [Place(*key) for key in ours.rows if key[0] == place.dataset and key != place]
        members = {one: _our_value(sheet, ours, one) for one in own}
        gaps = _coverage(members, "categories")
        words += [wording.sentence(f"{place.label}: {gap}") for gap in gaps]
    return _Value(percent(row[metric]), words, percent(row.get(STD_OF[metric])))


def _coverage(members: Mapping[Place, _Value | None], what: str) -> list[str]:
    """Returns words on a mean that does not cover all its members."""
    missing = [place.label for place, value in members.items() if value is None]
    undefined = [place.label for place, v in members.items() if v and v.percent is None]
    words = wording.describe_mean(len(members), what, missing=missing, undefined=undefined)
    return [words] if words else []


def _why_undefined(row: Row, metric: str) -> str:
    level, facts = level_of(metric), DATASETS.get(row["dataset"])
    # The exact AUPRO is defined, so there are masks.
    if metric == AUPRO_200STEP and row["pixel_aupro"] is not None:
        return "AUPRO at 200 thresholds was not computed"
    # Before the counts: a reason that holds for every copy of the dataset.
    if facts is not None and level not in facts.levels:
        return f"the dataset has no {'masks' if level == 'pixel' else 'normal images'}"
    # Anomalous images have normal pixels.
    negatives = level == "pixel" or row["n_anomalous"] < row["n_images"]
    return missing_class(negatives, row["n_anomalous"] > 0, "images") or "undefined for the data"


def _published_column(competitor: Competitor) -> Column:
    name, full_shot = competitor.name, bool(competitor.full_shot)
    keys = (("method", competitor.method), ("setting", competitor.setting), ("source", PUBLISHED))
    group = FULL_SHOT if full_shot else PUBLISHED
    return Column(name, group, f"{name} ({FULL_SHOT})" if full_shot else name, keys)


def _published_cell(sheet: Sheet, competitor: Competitor, number: PublishedNumber) -> Cell:
    words, keys = [], [("source", "recomputed")] * (not number.printed)
    if not number.printed:
        words.append("Not published; computed as the mean of the published numbers.")
    elif number.table != sheet.table and not number.full_shot:
        words.append(f"Published in Table {number.table}.")
    gain = f"published gain over the best prior method: {number.gain}" if number.gain else ""
    label = Place(number.dataset, number.category).label
    words += [f"{competitor.name}, {label}: {one}." for one in (number.reading, gain) if one]
    note = " ".join(f"{one}." for one in (number.doubt, number.full_shot) if one)
    return Cell(
        number.percent,
        text=number.printed or None,
        doubt=bool(number.doubt),
        footnotes=tuple(words),
        keys=(*keys, ("note", note)),
    )


def _excluded(sheet: Sheet, place: Place) -> tuple[str, ...]:
    """Returns words on datasets of the table that its mean excludes."""
    if place.dataset not in DOMAIN_MEANS:
        return ()
    here = [one.dataset for one in sheet.places if one.dataset in DATASETS]
    here = [key for key in here if DATASETS[key].domain == DOMAIN_MEANS[place.dataset]]
    without = [names.dataset_name(key) for key in here if key not in sheet.members(place)]
    return (f"Excludes {', '.join(without)}, as in the paper.",) if without else ()


def _sources_of_full_shot(sheet: Sheet) -> list[str]:
    """Returns sentences on the tables that print the full-shot methods."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for competitor, numbers in sheet.columns.items():
        for number in numbers.values() if competitor.full_shot else ():
            source = found.setdefault((number.table, competitor.full_shot), {})
            source[names.method_name(competitor.method)] = None
    return [f"{', '.join(who)}: Table {table}, {words}." for (table, words), who in found.items()]
