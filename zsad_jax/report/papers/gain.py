"""The gain of a paper's method, and of ours, over the best method before it, as averages over a domain."""

from collections.abc import Iterable, Sequence

from zsad_jax.report import names
from zsad_jax.report.papers.beside import (
    PUBLISHED,
    metric_keys,
    on_training,
    our_cell,
    our_column,
    our_value,
)
from zsad_jax.report.papers.sheets import GAIN, Competitor, Place, Sheet
from zsad_jax.report.papers.workdirs import Ours
from zsad_jax.report.published import DOMAIN_MEANS, all_numbers
from zsad_jax.report.tables import (
    BEST_PRIOR,
    DOUBT,
    UNDEFINED,
    Cell,
    Column,
    Footnotes,
    Line,
    Table,
)

PRINTED = "printed gain over best prior: "


def make_gain_table(paper: str, sheets: Iterable[Sheet], ours: Sequence[Ours]) -> Table:
    """The means over each domain, held against the best published method that is not the paper's own.

    Args:
      paper: key of the paper.
      sheets: the paper's tables of main results.
      ours: our results; a mean that does not cover the paper's datasets, or is of another training than
        theirs, has no gain.
    """
    footnotes = Footnotes()
    printed = printed_gains(paper)
    found = [
        (place, sheet)
        for mean in DOMAIN_MEANS
        for sheet in sheets
        for place in sheet.places
        if place.dataset == mean
    ]
    lines = [_line(sheet, place, ours, printed, footnotes) for place, sheet in found]
    name = names.method_name(paper)
    keys = (("method", paper), ("source", PUBLISHED))
    columns = [Column("best prior", PUBLISHED, "best prior"), Column(name, PUBLISHED, name, keys)]
    return Table(
        title=f"{name}: gain over the best prior method",
        head=("Mean", "Metric", "Best prior method", *(["Printed gain"] if printed else [])),
        columns=(*columns, *map(our_column, ours)),
        lines=tuple(lines),
        compared=BEST_PRIOR,
        footnotes=tuple(footnotes.words),
        keys=(("paper", paper), ("table", GAIN), ("category", "mean")),
    )


def printed_gains(paper: str) -> dict[tuple[str, str], str]:
    """The gains that a paper itself prints, by mean and metric."""
    return {
        (number.dataset, number.metric): number.reading.removeprefix(PRINTED)
        for number in all_numbers()
        if number.paper == paper and number.reading.startswith(PRINTED)
    }


def _line(
    sheet: Sheet,
    place: Place,
    ours: Sequence[Ours],
    printed: dict[tuple[str, str], str],
    footnotes: Footnotes,
) -> Line:
    prior = {
        competitor: percent
        for competitor in sheet.competitors
        if competitor.method != sheet.paper and not competitor.full_shot
        if (percent := sheet.percent(competitor, place)) is not None
    }
    best = max(prior, key=prior.__getitem__)
    doubt = sheet.doubt(best, place)
    if doubt:
        name = f"{names.dataset_name(place.dataset)}, {names.PAPER_METRICS[sheet.metric]}"
        footnotes.marks([f"{DOUBT} {name}, {names.method_name(best.method)}: {doubt}."])
    reference = prior[best]
    cells = [
        Cell(reference, doubt=bool(doubt)),
        Cell(sheet.percent(Competitor(sheet.paper), place), reference=reference),
    ]
    values = [on_training(our_value(sheet, one, place), sheet, one, place) for one in ours]
    cells += [our_cell(value, reference, footnotes) for value in values]
    labels = [names.dataset_name(place.dataset), names.PAPER_METRICS[sheet.metric]]
    labels.append(names.method_name(best.method))
    if printed:
        labels.append(printed.get((place.dataset, sheet.metric), UNDEFINED))
    keys = (("dataset", place.dataset), *metric_keys(sheet.metric))
    return Line(tuple(labels), tuple(cells), keys=keys)
