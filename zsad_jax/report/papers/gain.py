"""The gain of a paper's method, and of ours, over the best method before it, as averages over a domain."""

from collections.abc import Iterable, Mapping, Sequence

from zsad_jax.report import names
from zsad_jax.report.papers.sheets import GAIN, Place, Sheet
from zsad_jax.report.papers.side_by_side import (
    PUBLISHED,
    metric_keys,
    our_cell,
    our_column,
)
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


def make_gain_table(paper: str, sheets: Iterable[Sheet], ours: Sequence[Ours]) -> Table:
    """Makes a table of the means over each domain, compared with the best method before the paper's own.

    Args:
      paper: key of the paper.
      sheets: the paper's tables of main results.
      ours: our results; a mean that does not cover the paper's datasets, or is of another training than
        theirs, has no gain.
    """
    footnotes, printed = Footnotes(), printed_gains(paper)
    sheets = list(sheets)
    lines = [
        _line(sheet, Place(mean), ours, printed, footnotes)
        for mean in DOMAIN_MEANS
        for sheet in sheets
        if Place(mean) in sheet.places
    ]
    name = names.method_name(paper)
    keys = (("method", paper), ("source", PUBLISHED))
    columns = [Column("best prior", PUBLISHED, "best prior"), Column(name, PUBLISHED, name, keys)]
    return Table(
        title=f"{name}: gain over the best prior method",
        head=("Mean", "Metric", "Best prior method", *["Printed gain"] * bool(printed)),
        columns=(*columns, *map(our_column, ours)),
        lines=tuple(lines),
        compared=BEST_PRIOR,
        footnotes=tuple(footnotes.words),
        keys=(("paper", paper), ("table", GAIN), ("category", "mean")),
    )


def printed_gains(paper: str) -> dict[tuple[str, str], str]:
    """Returns the gains that a paper itself prints, by mean and metric."""
    return {(n.dataset, n.metric): n.gain for n in all_numbers() if n.paper == paper and n.gain}


def _line(
    sheet: Sheet,
    place: Place,
    ours: Sequence[Ours],
    printed: Mapping[tuple[str, str], str],
    footnotes: Footnotes,
) -> Line:
    prior = {
        competitor: numbers[place]
        for competitor, numbers in sheet.columns.items()
        if competitor.method != sheet.paper and not competitor.full_shot and place in numbers
    }
    best = max(prior, key=lambda competitor: prior[competitor].percent)
    reference, doubt = prior[best].percent, prior[best].doubt
    labels = [place.label, names.PAPER_METRICS[sheet.metric], names.method_name(best.method)]
    if doubt:
        footnotes.marks([f"{DOUBT} {', '.join(labels)}: {doubt}."])
    own = sheet.reference(sheet.paper, place)
    cells = [Cell(reference, doubt=bool(doubt)), Cell(own, reference=reference)]
    cells += [our_cell(sheet, one, place, reference, footnotes, training=True) for one in ours]
    if printed:
        labels.append(printed.get((place.dataset, sheet.metric), UNDEFINED))
    keys = (("dataset", place.dataset), *metric_keys(sheet.metric))
    return Line(tuple(labels), tuple(cells), keys=keys)
