"""Tables as data, the same for every format: numbers, what they are compared with, and footnotes."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from zsad_jax.metrics import Note
from zsad_jax.report import names
from zsad_jax.report.published import PublishedNumber
from zsad_jax.report.rows import level_of

Notes = Mapping[tuple[str, str], Sequence[Note]]  # by (dataset, category)
Keys = tuple[tuple[str, str], ...]  # pairs of CSV column and entry

# Our metrics, and the papers' metric to compare each with: papers compute AUPRO from 200 thresholds.
_PAPER_AUPRO = {"pixel_aupro": None, "pixel_aupro_200step": "pixel_aupro"}
PAPER_METRIC = {key: _PAPER_AUPRO.get(key, key) for key in names.METRICS}
# What numbers are compared with.
Compared = Literal["paper", "main result", "same method", "best prior method"]
PAPER: Compared = "paper"
MAIN_RESULT: Compared = "main result"
SAME_METHOD: Compared = "same method"
BEST_PRIOR: Compared = "best prior method"
UNDEFINED = "–"
DOUBT = "†"
MINUS = "−"


class Cell(NamedTuple):
    """A number and what it is compared with, in percent.

    Attributes:
      value: rounded as shown; None when undefined.
      paper: what the paper prints, shown in brackets.
      apart: whether images, masks or settings differ from the paper's, so that there is no difference.
      reference: the number that `difference` is to, if not the paper's; not shown.
      spread: standard deviation over seeds.
      text: shown in place of the value: a number as printed, or "" for a cell that is empty.
      doubt: whether the source of the value marks it as suspicious.
      footnotes: sentences.
      keys: CSV entries of this number alone.
    """

    value: float | None = None
    paper: PublishedNumber | None = None
    apart: bool = False
    reference: float | None = None
    spread: float | None = None
    text: str | None = None
    doubt: bool = False
    footnotes: tuple[str, ...] = ()
    keys: Keys = ()

    @property
    def difference(self) -> float | None:
        """The value less the paper's number (or the reference), of the numbers as shown."""
        other = self.paper.percent if self.paper else self.reference
        if self.apart or self.value is None or other is None:
            return None
        # Of rounded numbers, so that readers get the same by subtracting what is printed.
        return round(self.value - other, 1)

    @property
    def number(self) -> str:
        """The value as shown, with its spread and the mark of doubt."""
        shown = self.text
        if shown is None:
            shown = UNDEFINED if self.value is None else f"{self.value:.1f}"
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        return shown + spread + DOUBT * self.doubt

    @property
    def beside(self) -> tuple[str, ...]:
        """The paper's number and the difference, if any."""
        parts = []
        if self.paper:
            parts.append(f"{self.paper.percent:.1f}{DOUBT if self.paper.doubt else ''}")
        if self.difference is not None:
            parts.append(signed(self.difference))
        return tuple(parts)


EMPTY = Cell(text="")


class Column(NamedTuple):
    """A column of numbers: its name below the heading of its group, and the full one without groups.

    `keys` are the CSV entries of its numbers.
    """

    name: str
    group: str
    full: str
    keys: Keys = ()


class Line(NamedTuple):
    """A row of a table: its labels, its cells, and its footnotes."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    footnotes: tuple[str, ...] = ()
    summary: bool = False
    keys: Keys = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table as data.

    Attributes:
      head: names of the label columns.
      columns: of the numbers.
      lines: with as many labels and cells as there are columns.
      compared: what the numbers are compared with.
      remarks: footnotes on the whole, without a number.
      keys: CSV entries of every number.
      setting: what differs from the config file, shown after the title.
    """

    title: str
    head: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    compared: Compared
    remarks: tuple[str, ...] = ()
    keys: Keys = ()
    setting: str = ""

    @property
    def caption(self) -> str:
        """The title with the setting."""
        return f"{self.title} ({self.setting})" if self.setting else self.title

    @functools.cached_property
    def footnotes(self) -> tuple[str, ...]:
        """All footnotes, numbered from 1; those with the same words are one."""
        words: list[str] = []
        for line in self.lines:
            words += line.footnotes
            words += (one for cell in line.cells for one in cell.footnotes)
        return tuple(dict.fromkeys((*words, *self.remarks)))

    def marks(self, part: Line | Cell) -> list[int]:
        """Returns the numbers of the footnotes of a line or cell, in order."""
        return sorted({self.footnotes.index(words) + 1 for words in part.footnotes})


def metric_column(metric: str) -> Column:
    """Returns the column of a metric, below its level."""
    short, full = names.SHORT_METRICS[metric], names.METRICS[metric]
    return Column(short, names.METRIC_GROUPS[level_of(metric)], full, (("metric", metric),))


def legend(compared: Compared) -> str:
    """Explains the cells of a table."""
    undefined = f"{UNDEFINED} marks undefined values."
    doubt = f"{DOUBT} marks published numbers that are inconsistent with others."
    apart = (
        "No difference is shown where images, masks or settings differ from the published ones; footnotes"
        " explain these cases."
    )
    texts = {
        PAPER: "Values in percent. Where the paper reports a number, it is shown in brackets with the"
        f" difference (ours − paper). {undefined} {doubt} The papers compute AUPRO at 200 thresholds;"
        f" it is compared with AUPRO (200 steps), not with AUPRO over all thresholds. {apart}",
        SAME_METHOD: "Values in percent, published numbers as printed. The difference from the paper's number"
        f" for the same method is shown in brackets. {undefined} Empty cells were not published or not run."
        f" {doubt} AUPRO is computed at 200 thresholds. {apart}",
        BEST_PRIOR: "Values in percent. The gain over the best published mean of the table is shown in"
        " brackets; full-shot methods and the paper's own method are excluded from the prior methods."
        f" {undefined} {apart}",
        MAIN_RESULT: "Values in percent. The difference from the main result is shown in brackets."
        f" {undefined}",
    }
    return texts[compared]


def percent(value: float | None) -> float | None:
    """Returns a metric in [0, 1] as percent with one decimal; None stays None."""
    return None if value is None else round(100 * value, 1)


def signed(value: float) -> str:
    """Returns a difference with its sign, a true minus."""
    return f"{value:+.1f}".replace("-", MINUS) if value else "±0.0"
