"""A paper's table with our results in further columns."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.data.protocols import DATASETS
from zsad_jax.metrics import AUPRO_200STEP
from zsad_jax.report import names, wording
from zsad_jax.report.compare import words_on
from zsad_jax.report.papers.sheets import Competitor, Place, Sheet
from zsad_jax.report.papers.workdirs import Ours
from zsad_jax.report.published import DOMAIN_MEANS
from zsad_jax.report.rows import MEAN, Row, level_of
from zsad_jax.report.tables import (
    DOUBT,
    EMPTY,
    PAPER_METRIC,
    SAME_METHOD,
    Cell,
    Column,
    Footnotes,
    Keys,
    Line,
    Table,
    percent,
)

OUR_METRIC = {paper: ours for ours, paper in PAPER_METRIC.items() if paper}
PUBLISHED, FULL_SHOT, OURS = "published", "published, full-shot", "ours"  # groups of columns


class Value(NamedTuple):
    """One of our numbers at a place of a paper's table.

    Attributes:
      percent: None where undefined.
      run: whether there is a result at all.
      words: why the number cannot be compared with the paper's; () if it can.
    """

    percent: float | None
    run: bool = True
    words: tuple[str, ...] = ()


def make_table(sheet: Sheet, ours: Sequence[Ours]) -> Table:
    """Makes a table of one metric, our columns at the right.

    Ours has the difference to what the paper prints for the same method, if both are of the same images,
    setting and training.
    """
    footnotes = Footnotes()
    doubts: dict[tuple[str, str], list[str]] = {}
    lines = []
    for place in sheet.places:
        marks = footnotes.marks(_excluded(sheet, place))
        cells = []
        summary = place.dataset in DOMAIN_MEANS or (sheet.by_category and place.category == MEAN)
        label = "Mean" if summary and place.dataset in DATASETS else place.label
        for competitor in sheet.competitors:
            cells.append(_published_cell(sheet, competitor, place, footnotes))
            doubt = sheet.doubt(competitor, place)
            if doubt:
                doubts.setdefault((competitor.name, doubt), []).append(place.label)
        cells += [_our_cell(sheet, one, place, footnotes) for one in ours]
        keys = (("dataset", place.dataset), ("category", place.category))
        lines.append(Line((label,), tuple(cells), marks, summary, keys))
    footnotes.marks(
        f"{DOUBT} {name}, {', '.join(places)}: {doubt}." for (name, doubt), places in doubts.items()
    )
    footnotes.marks(_sources_of_full_shot(sheet))
    return Table(
        title=sheet.title,
        head=("Category" if sheet.by_category else "Dataset",),
        columns=(*map(_published_column, sheet.competitors), *map(our_column, ours)),
        lines=tuple(lines),
        compared=SAME_METHOD,
        footnotes=tuple(footnotes.words),
        keys=(("paper", sheet.paper), ("table", sheet.table), *metric_keys(sheet.metric)),
    )


def our_column(ours: Ours) -> Column:
    """Returns the column of a method of ours."""
    keys = (("method", ours.method), ("setting", ours.setting), ("source", OURS))
    remark = (("note", wording.DEMONSTRATION),) if ours.demonstration else ()
    return Column(ours.name, OURS, f"{OURS}: {ours.name}", keys + remark)


def metric_keys(metric: str) -> Keys:
    """Returns the CSV entries of a metric."""
    level, _, name = metric.partition("_")
    return ("level", level), ("metric", name)


def our_cell(value: Value, reference: float | None, footnotes: Footnotes) -> Cell:
    """Returns our number, with the difference to a published one if they can be compared."""
    if not value.run:
        return EMPTY
    if not value.words:
        return Cell(value.percent, reference=reference)
    return Cell(value.percent, marks=footnotes.marks(map(wording.sentence, value.words)))


def our_value(sheet: Sheet, ours: Ours, place: Place, *, training: bool) -> Value:
    """Returns our number at a place.

    Args:
      sheet: the paper's table.
      ours: our results.
      place: the row of the table.
      training: whether training that differs from the paper's rules out a comparison.
    """
    value = _value_by_setting(sheet, ours, place)
    if value.percent is None or not training:
        return value
    keys = sheet.members(place.dataset) if place.dataset in DOMAIN_MEANS else (place.dataset,)
    words = words_on(ours.deviations, keys, sheet.metric, kinds=("training",))
    return value._replace(words=(*value.words, *words))


def _value_by_setting(sheet: Sheet, ours: Ours, place: Place) -> Value:
    """Returns our number at a place, with words on images and setting."""
    metric = OUR_METRIC[sheet.metric]
    if place.dataset in DOMAIN_MEANS:
        members = map(Place, sheet.members(place.dataset))
        values = {member: _value_by_setting(sheet, ours, member) for member in members}
        defined = {key: value for key, value in values.items() if value.percent is not None}
        mean = float(np.mean([ours.rows[key][metric] for key in defined])) if defined else None
        words = [*_coverage(values, "datasets"), *(w for v in defined.values() for w in v.words)]
        return Value(percent(mean), any(value.run for value in values.values()), tuple(words))
    row = ours.rows.get(place)
    if row is None:
        return Value(None, run=False)
    if row[metric] is None:
        return Value(None, words=(f"{place.label}: {_why_undefined(row, metric)}",))
    words = words_on(ours.deviations, (place.dataset,), metric, kinds=("images", "setting"))
    if place.category == MEAN:
        own = [Place(*key) for key in ours.rows if key[0] == place.dataset and key != place]
        values = {one: _value_by_setting(sheet, ours, one) for one in own}
        words += [f"{place.label}: {told}" for told in _coverage(values, "categories")]
    return Value(percent(row[metric]), words=tuple(words))


def _coverage(values: Mapping[Place, Value], what: str) -> list[str]:
    """Returns words on a mean that does not cover all its members."""
    missing = [place.label for place, value in values.items() if not value.run]
    undefined = [place.label for place, v in values.items() if v.run and v.percent is None]
    told = wording.describe_mean(len(values), what, missing=missing, undefined=undefined)
    return [told] if told else []


def _why_undefined(row: Row, metric: str) -> str:
    level, about = level_of(metric), DATASETS.get(row["dataset"])
    if metric == AUPRO_200STEP and row["pixel_aupro"] is not None:
        return "AUPRO from 200 thresholds was not computed"
    if about is not None and level not in about.levels:
        return f"the dataset has no {'masks' if level == 'pixel' else 'normal images'}"
    if row["n_anomalous"] == 0:
        return "no image is anomalous"
    if level == "image" and row["n_anomalous"] == row["n_images"]:
        return "no image is normal"
    return "undefined for the data"


def _our_cell(sheet: Sheet, ours: Ours, place: Place, footnotes: Footnotes) -> Cell:
    reference, training = sheet.reference(ours.method, place), False
    if not ours.usual:
        same = sheet.reference(ours.method, place, ours.training)
        reference, training = same, same is None and reference is not None
    return our_cell(our_value(sheet, ours, place, training=training), reference, footnotes)


def _published_column(competitor: Competitor) -> Column:
    name, full_shot = competitor.name, bool(competitor.full_shot)
    keys = (("method", competitor.method), ("setting", competitor.setting), ("source", PUBLISHED))
    group = FULL_SHOT if full_shot else PUBLISHED
    return Column(name, group, f"{name} ({FULL_SHOT})" if full_shot else name, keys)


def _published_cell(
    sheet: Sheet, competitor: Competitor, place: Place, footnotes: Footnotes
) -> Cell:
    number, doubt = sheet.numbers.get((competitor, place)), sheet.doubt(competitor, place)
    if number is None:
        value = sheet.percent(competitor, place)
        if value is None:
            return EMPTY
        marks = footnotes.marks(["Not printed: the mean of the printed numbers."])
        keys = (("source", "recomputed"), ("note", f"{doubt}." if doubt else ""))
        return Cell(value, doubt=bool(doubt), marks=marks, keys=keys)
    elsewhere = number.table != sheet.table and not number.full_shot
    words = [f"Printed in Table {number.table}."] * elsewhere
    gain = f"printed gain over best prior: {number.gain}" if number.gain else ""
    for told in filter(None, (number.reading, gain)):
        words.append(f"{competitor.name}, {place.label}: {told}.")
    note = " ".join(f"{told}." for told in (doubt, number.full_shot) if told)
    return Cell(
        number.percent,
        text=number.printed,
        doubt=bool(doubt),
        marks=footnotes.marks(words),
        keys=(("note", note),),
    )


def _excluded(sheet: Sheet, place: Place) -> list[str]:
    """Returns words on datasets of the table that its mean excludes."""
    if place.dataset not in DOMAIN_MEANS:
        return []
    here = [one.dataset for one in sheet.places if one.dataset in DATASETS]
    here = [key for key in here if DATASETS[key].domain == DOMAIN_MEANS[place.dataset]]
    without = [names.dataset_name(key) for key in here if key not in sheet.members(place.dataset)]
    return [f"Without {', '.join(without)}, as in the paper."] if without else []


def _sources_of_full_shot(sheet: Sheet) -> list[str]:
    """Returns sentences on the tables that print the full-shot methods."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for (competitor, _), number in sheet.numbers.items():
        if competitor.full_shot:
            source = found.setdefault((number.table, competitor.full_shot), {})
            source[names.method_name(competitor.method)] = None
    return [f"{', '.join(who)}: Table {table}, {words}." for (table, words), who in found.items()]
