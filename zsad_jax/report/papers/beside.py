"""A paper's table with our results beside it."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.data.protocols import DATASETS
from zsad_jax.report import names
from zsad_jax.report.coverage import SETTING
from zsad_jax.report.papers.sheets import Competitor, Place, Sheet
from zsad_jax.report.papers.workdirs import Ours
from zsad_jax.report.published import DOMAIN_MEANS
from zsad_jax.report.rows import MEAN, Row
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
from zsad_jax.report.training import SETTINGS, tell_training
from zsad_jax.report.wording import DEMONSTRATION

OUR_METRIC = {paper: ours for ours, paper in PAPER_METRIC.items() if paper}
PUBLISHED, FULL_SHOT, OURS = "published", "published, full-shot", "ours"  # groups of columns


class Value(NamedTuple):
    """One of our numbers at a place of a paper's table.

    Attributes:
      percent: None where undefined.
      run: whether there is a result at all.
      words: sentences on it; a number with any does not cover what the paper's covers.
    """

    percent: float | None
    run: bool = True
    words: tuple[str, ...] = ()


def make_table(sheet: Sheet, ours: Sequence[Ours]) -> Table:
    """One metric of a paper's table, our columns at the right.

    Ours has the difference to what the paper prints for the same method, where both cover the same and are
    of the same setting.
    """
    footnotes = Footnotes()
    doubts: dict[tuple[str, str], list[str]] = {}
    lines = []
    for place in sheet.places:
        marks = footnotes.marks(_on_members(sheet, place))
        cells = [_published_cell(sheet, one, place, footnotes) for one in sheet.competitors]
        for competitor, cell in zip(sheet.competitors, cells, strict=True):
            if cell.doubt:
                said = (competitor_name(competitor), sheet.doubt(competitor, place))
                doubts.setdefault(said, []).append(_label(place))
        cells += [_our_cell(sheet, one, place, footnotes) for one in ours]
        summary = place.dataset in DOMAIN_MEANS or (sheet.by_category and place.category == MEAN)
        keys = (("dataset", place.dataset), ("category", place.category))
        lines.append(Line((_label(place, summary),), tuple(cells), marks, summary, keys))
    footnotes.marks(
        f"{DOUBT} {method}, {', '.join(places)}: {doubt}."
        for (method, doubt), places in doubts.items()
    )
    columns = [*map(_published_column, sheet.competitors), *map(our_column, ours)]
    footnotes.marks(_on_full_shot(sheet))
    return Table(
        title=sheet.title,
        head=("Category" if sheet.by_category else "Dataset",),
        columns=tuple(columns),
        lines=tuple(lines),
        compared=SAME_METHOD,
        footnotes=tuple(footnotes.words),
        keys=(("paper", sheet.paper), ("table", sheet.table), *metric_keys(sheet.metric)),
    )


def competitor_name(competitor: Competitor) -> str:
    """A published method with its ablation or variant."""
    name = names.method_name(competitor.method)
    return f"{name}, {competitor.setting}" if competitor.setting else name


def our_column(ours: Ours) -> Column:
    """The column of a method of ours."""
    keys = (("method", ours.method), ("setting", ours.setting), ("source", OURS))
    remark = (("note", DEMONSTRATION),) if ours.demonstration else ()
    return Column(ours.name, OURS, f"{OURS}: {ours.name}", keys + remark)


def metric_keys(metric: str) -> Keys:
    """What CSV says of a metric."""
    level, _, name = metric.partition("_")
    return ("level", level), ("metric", name)


def our_cell(value: Value, reference: float | None, footnotes: Footnotes) -> Cell:
    """Our number with its difference to a published one; without where it does not cover the same."""
    if not value.run:
        return EMPTY
    if not value.words:
        return Cell(value.percent, reference=reference)
    sentences = (words[0].upper() + words[1:] for words in value.words)
    return Cell(value.percent, marks=footnotes.marks(sentences))


def our_value(sheet: Sheet, ours: Ours, place: Place) -> Value:
    """Our number at a place; a mean says what it does not cover."""
    metric = OUR_METRIC[sheet.metric]
    if place.dataset in DOMAIN_MEANS:
        values = {key: our_value(sheet, ours, Place(key)) for key in sheet.members(place.dataset)}
        present = [value.percent for value in values.values() if value.percent is not None]
        rows = [ours.rows[key, MEAN][metric] for key, v in values.items() if v.percent is not None]
        mean = percent(float(np.mean(rows))) if present else None
        words = [*_coverage(values, "datasets", names.dataset_name)]
        words += [said for v in values.values() if v.percent is not None for said in v.words]
        return Value(mean, any(value.run for value in values.values()), tuple(words))
    row = ours.rows.get(place)
    if row is None:
        return Value(None, run=False)
    if row[metric] is None:
        return Value(None, words=(f"{_label(place)}: {_why_undefined(row, metric)}.",))
    parts = (metric.split("_")[0], SETTING)
    words = [one for part in parts for one in ours.partial.get((place.dataset, part), ())]
    if place.category == MEAN:
        own = [key for dataset, key in ours.rows if dataset == place.dataset and key != MEAN]
        values = {key: our_value(sheet, ours, Place(place.dataset, key)) for key in own}
        covered = _coverage(values, "categories", names.category_name)
        words += [f"{_label(place)}: {sentence}" for sentence in covered]
    return Value(percent(row[metric]), words=tuple(words))


def on_training(value: Value, sheet: Sheet, ours: Ours, place: Place) -> Value:
    """Our number with a word on what was trained on, where that is not the papers' usual training."""
    if value.percent is None:
        return value
    keys = sheet.members(place.dataset) if place.dataset in DOMAIN_MEANS else [place.dataset]
    places = (Place(key, place.category) for key in keys)
    told = tell_training(ours.rows[one] for one in places if one in ours.rows)
    return value._replace(words=(*value.words, *told))


def _coverage(values: dict[str, Value], what: str, name: Callable[[str], str]) -> Iterable[str]:
    """A sentence on a mean that does not cover all its members; none for one that does."""
    missing = [name(key) for key, value in values.items() if not value.run]
    undefined = [name(key) for key, v in values.items() if v.run and v.percent is None]
    if missing or undefined:
        parts = [f"mean over {len(values) - len(missing) - len(undefined)} of {len(values)} {what}"]
        parts += [f"not run: {', '.join(missing)}"] if missing else []
        parts += [f"undefined: {', '.join(undefined)}"] if undefined else []
        yield "; ".join(parts) + "."


def _why_undefined(row: Row, metric: str) -> str:
    level = metric.split("_")[0]
    about = DATASETS.get(row["dataset"])
    if metric == "pixel_aupro_200step" and row["pixel_aupro"] is not None:
        return "AUPRO from 200 thresholds was not computed"
    if about is not None and level not in about.levels:
        return (
            "the dataset has no masks" if level == "pixel" else "the dataset has no normal images"
        )
    if row["n_anomalous"] == 0:
        return "no image is anomalous"
    if level == "image" and row["n_anomalous"] == row["n_images"]:
        return "no image is normal"
    return "undefined for the data"


def _our_cell(sheet: Sheet, ours: Ours, place: Place, footnotes: Footnotes) -> Cell:
    value, reference = our_value(sheet, ours, place), sheet.reference(ours.method, place)
    if not ours.usual:
        settings = SETTINGS.get((sheet.paper, ours.training), ())
        same = sheet.reference(ours.method, place, settings=settings)
        if same is None and reference is not None:
            value = on_training(value, sheet, ours, place)
        reference = same
    return our_cell(value, reference, footnotes)


def _published_column(competitor: Competitor) -> Column:
    name = competitor_name(competitor)
    keys = (("method", competitor.method), ("setting", competitor.setting), ("source", PUBLISHED))
    if competitor.full_shot:
        return Column(name, FULL_SHOT, f"{name} ({FULL_SHOT})", keys)
    return Column(name, PUBLISHED, name, keys)


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
    words = []
    if number.table != sheet.table and not number.full_shot:
        words.append(f"Printed in Table {number.table}.")
    if number.reading:
        words.append(f"{competitor_name(competitor)}, {_label(place)}: {number.reading}.")
    said = [f"{words}." for words in (doubt, number.full_shot) if words]
    return Cell(
        number.percent,
        text=number.printed,
        doubt=bool(doubt),
        marks=footnotes.marks(words),
        keys=(("note", " ".join(said)),),
    )


def _on_members(sheet: Sheet, place: Place) -> list[str]:
    """What a mean over datasets does not cover, though the table has it."""
    if place.dataset not in DOMAIN_MEANS:
        return []
    here = [one.dataset for one in sheet.places if one.dataset in DATASETS]
    here = [key for key in here if DATASETS[key].domain == DOMAIN_MEANS[place.dataset]]
    without = [names.dataset_name(key) for key in here if key not in sheet.members(place.dataset)]
    return [f"Without {', '.join(without)}, as in the paper."] if without else []


def _on_full_shot(sheet: Sheet) -> list[str]:
    """Where full-shot numbers were taken from."""
    said: dict[tuple[str, str], list[str]] = {}
    for competitor in sheet.competitors:
        if competitor.full_shot:
            number = next(n for (c, _), n in sheet.numbers.items() if c == competitor)
            name = names.method_name(competitor.method)
            said.setdefault((number.table, competitor.full_shot), []).append(name)
    return [f"{', '.join(who)}: Table {table}, {words}." for (table, words), who in said.items()]


def _label(place: Place, summary: bool = False) -> str:
    if place.category != MEAN:
        return names.category_name(place.category)
    return "Mean" if summary and place.dataset in DATASETS else names.dataset_name(place.dataset)
