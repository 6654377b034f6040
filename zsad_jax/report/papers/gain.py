"""The gain of a paper's method, and of ours, over the best method before it, as averages over a domain."""

from collections.abc import Sequence

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
    Line,
    Table,
)


def make_gain_table(paper: str, sheets: Sequence[Sheet], ours: Sequence[Ours]) -> Table:
    """Makes a table of the means over each domain, compared with the best method before the paper's own.

    Args:
      paper: key of the paper.
      sheets: the paper's tables of main results.
      ours: our results; a mean that does not cover the paper's datasets, or is of another training than
        theirs, has no gain.
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
        best = max(prior, key=lambda number: number.percent)
        labels = [place.label, names.PAPER_METRICS[sheet.metric], names.method_name(best.method)]
        if best.doubt:
            remarks.append(f"{DOUBT} {', '.join(labels)}: {best.doubt}.")
        if printed:
            labels.append(printed.get((place.dataset, sheet.metric), UNDEFINED))
        cells = [
            Cell(best.percent, doubt=bool(best.doubt)),
            Cell(sheet.reference(paper, place), reference=best.percent),
            *(our_cell(sheet, one, place, best.percent, training=True) for one in ours),
        ]
        keys = (("dataset", place.dataset), *metric_keys(sheet.metric))
        lines.append(Line(tuple(labels), tuple(cells), keys=keys))
    name = names.method_name(paper)
    own = Column(name, PUBLISHED, name, (("method", paper), ("source", PUBLISHED)))
    best_prior = Column("best prior", PUBLISHED, "best prior")
    return Table(
        title=f"{name}: gain over the best prior method",
        head=("Mean", "Metric", "Best prior method", *["Printed gain"] * bool(printed)),
        columns=(best_prior, own, *map(our_column, ours)),
        lines=tuple(lines),
        compared=BEST_PRIOR,
        remarks=tuple(remarks),
        keys=(("paper", paper), ("table", GAIN), ("category", "mean")),
    )


def printed_gains(paper: str) -> dict[tuple[str, str], str]:
    """Returns the gains that a paper itself prints, by mean and metric."""
    return {(n.dataset, n.metric): n.gain for n in all_numbers() if n.paper == paper and n.gain}
