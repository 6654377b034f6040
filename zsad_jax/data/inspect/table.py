"""Small tables of text: for a terminal, as markdown, as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

FORMATS = ("plain", "markdown", "csv")
UNKNOWN = "–"

Pair = tuple[int, int]  # numbers of normal and of anomalous images
Cell = str | int | Pair | None


class Table(NamedTuple):
    """Rows of cells; a column that holds pairs is two columns as CSV.

    Attributes:
      heads: of the columns.
      pairs: the heads of the columns of pairs.
    """

    heads: tuple[str, ...]
    pairs: frozenset[str]
    rows: list[tuple[Cell, ...]]

    def to_text(self, form: str) -> str:
        """The table in one of `FORMATS`, with a newline at the end."""
        if form == "csv":
            return self._to_csv()
        lines = [list(self.heads), *([_words(cell) for cell in row] for row in self.rows)]
        if form == "markdown":
            lines.insert(1, ["---"] * len(self.heads))
            return "".join(f"| {' | '.join(line)} |\n" for line in lines)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "".join(f"{_align(line, widths)}\n" for line in lines)

    def _to_csv(self) -> str:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        kinds = [head in self.pairs for head in self.heads]
        heads = ((f"{head} normal", f"{head} anomalous") for head in self.heads)
        writer.writerow(_spread(zip(self.heads, heads, kinds, strict=True)))
        for row in self.rows:
            pairs = (cell if isinstance(cell, tuple) else ("", "") for cell in row)
            writer.writerow(_spread(zip(row, pairs, kinds, strict=True)))
        return file.getvalue()


def _spread(cells: Iterable[tuple[Cell, tuple, bool]]) -> list[Cell]:
    """Cells, or in their place the two of a pair."""
    return [part for cell, both, is_pair in cells for part in (both if is_pair else (cell,))]


def _words(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return f"{cell[0]} / {cell[1]}"
    return UNKNOWN if cell is None else str(cell)


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(map(str.ljust, line, widths)).rstrip()
