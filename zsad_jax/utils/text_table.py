"""Small tables of text: for a terminal, as markdown, as CSV."""

import csv
import io
import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from zsad_jax.utils.images import printable

UNKNOWN = "–"
TERMINAL = 100  # columns
NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?")

Cell = str | int | tuple[int, int] | None


class TextTable(NamedTuple):
    """Rows of cells; a column that holds pairs is two columns as CSV."""

    heads: tuple[str, ...]
    pairs: frozenset[str]  # heads of columns of pairs
    rows: list[tuple[Cell, ...]]
    hidden: frozenset[str] = frozenset()  # heads of columns that a terminal has no room for

    def to_text(self, form: str) -> str:
        """Returns the table as "plain", "markdown" or "csv", with a newline at the end."""
        if form == "csv":
            return self._to_csv()
        lines = [list(self.heads), *([_words(cell) for cell in row] for row in self.rows)]
        if form == "markdown":
            lines.insert(1, ["---"] * len(self.heads))
            return "".join(f"| {' | '.join(line)} |\n" for line in lines)
        columns = [column for column in zip(*lines, strict=True) if column[0] not in self.hidden]
        widths = [max(map(len, column)) for column in columns[:-1]]
        left = "".join(f"{{:{width}}}  " for width in widths)
        room = max(TERMINAL - sum(widths) - 2 * len(widths), 12)
        text = []
        for *cells, last in zip(*columns, strict=True):
            # A long last cell continues on the lines below it.
            for number, part in enumerate(textwrap.wrap(last, room) or [""]):
                shown = cells if number == 0 else [""] * len(cells)
                text.append(f"{left.format(*shown)}{part}".rstrip())
        return "\n".join([*text, ""])

    def _to_csv(self) -> str:
        def fields(head: str, cell: Any) -> tuple[Any, ...]:
            return (cell or ("", "")) if head in self.pairs else (cell,)

        pairs = {head: (f"{head} normal", f"{head} anomalous") for head in self.pairs}
        rows: list[Sequence[Any]] = [[pairs.get(head, head) for head in self.heads], *self.rows]
        return csv_text([*itertools.chain(*map(fields, self.heads, row))] for row in rows)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows as CSV, a line each; None is an empty field. No text is a formula to a spreadsheet."""
    file = io.StringIO()
    # By default the csv module writes the line ends of Windows.
    csv.writer(file, lineterminator="\n").writerows(map(_plain, row) for row in rows)
    return file.getvalue()


def _plain(cell: Any) -> Any:
    """Escapes control characters of a text, and puts an apostrophe before what spreadsheets would evaluate."""
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text.startswith(tuple("=+-@")) and not NUMBER.fullmatch(text) else text


def _words(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return f"{cell[0]} / {cell[1]}"
    return UNKNOWN if cell is None else str(cell)
