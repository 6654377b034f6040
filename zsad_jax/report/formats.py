"""Reports and tables as HTML, Markdown, LaTeX (all from templates) and CSV."""

import functools
import itertools
import re
import textwrap
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from zsad_jax.report import names, tables
from zsad_jax.report.tables import BEST_PRIOR, SAME_METHOD, Cell, Column, Table
from zsad_jax.report.wording import DEMONSTRATION
from zsad_jax.utils.errors import plural
from zsad_jax.utils.images import printable
from zsad_jax.utils.text_table import csv_text

if TYPE_CHECKING:
    import jinja2

# The columns of a CSV with one number a line; a table, its lines and its columns fill in what they know.
LONG_COLUMNS = (
    *("paper", "table", "dataset", "category", "level", "metric", "method", "setting", "source"),
    *("value", "difference", "note"),
)
LATEX_SYNTAX: Any = {  # of templates in which braces and percent signs are LaTeX's
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}
_wrap = functools.partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # else an option of the row before
        "]": "{]}",
        "–": "--",
        "−": "$-$",
        "±": r"$\pm$",
        "²": "$^2$",
        "†": r"$^\dagger$",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "…": r"\ldots{}",
    }
)


def render(template: str, **values: Any) -> str:
    """Returns a template of `report/templates` with the values filled in; a missing one is an error.

    In HTML all values are escaped; in LaTeX those that pass the filter `latex`.
    """
    return _environment(template.rpartition(".")[2]).get_template(template).render(values)


@functools.cache
def _environment(suffix: str) -> "jinja2.Environment":
    """Returns the environment for the templates of a format."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("zsad_jax.report"),
        # Names of files and categories come from users.
        autoescape=suffix == "html",
        # A misspelled variable must not become an empty place in a report.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **(LATEX_SYNTAX if suffix == "tex" else {}),
    )
    environment.globals |= {
        "COMPACT": (SAME_METHOD, BEST_PRIOR),
        "DEMONSTRATION": DEMONSTRATION,
        "LABELS": names.LABELS,
        "MAIN_RESULT": tables.MAIN_RESULT,
    }
    environment.filters |= {
        "category_name": names.category_name,
        "column_groups": _column_groups,
        "columns_with_reference": _columns_with_reference,
        "dataset_name": names.dataset_name,
        "explained": _explained,
        "labeled": _labeled,
        "latex": lambda text: text.translate(_LATEX),
        "latex_lines": _latex_lines,
        # Without line breaks, and so that no name is HTML, a cell's end, emphasis, a link or a formula.
        "markdown": lambda text: re.sub(r"[\\`*<|\[~$]|&(?=[#\w])", r"\\\g<0>", printable(text)),
        "method_name": names.method_name,
        "plural": plural,
        "reference": _reference,
    }
    return environment


def _reference(cell: Cell) -> str:
    """Returns what a cell's value is held against, the difference in brackets."""
    parts = list(cell.beside)
    if cell.difference is not None:
        parts[-1] = f"({parts[-1]})"
    return " ".join(parts)


def _column_groups(table: Table) -> list[tuple[str, int, list[Column]]]:
    """Returns neighboring columns with the same group: the group, the index of the first, the columns."""
    groups: list[tuple[str, int, list[Column]]] = []
    for name, members in itertools.groupby(table.columns, lambda column: column.group):
        groups.append((name, sum(len(columns) for *_, columns in groups), list(members)))
    return groups


def _columns_with_reference(table: Table) -> set[int]:
    """Returns the indices of the columns in which a cell has something beside its value."""
    return {i for line in table.lines for i, cell in enumerate(line.cells) if cell.beside}


def _explained(shown: Iterable[Table]) -> Iterator[tuple[str, Table]]:
    """Yields tables, the first of each kind with its legend and the others with ""."""
    known: set[str] = set()
    for table in shown:
        yield "" if table.compared in known else tables.legend(table.compared), table
        known.add(table.compared)


def _latex_lines(name: str, width: int) -> list[str]:
    """Returns a name as LaTeX in lines of some characters; a bracket starts a line."""
    # LaTeX does not break lines in such columns, and a long one would shrink the whole table.
    parts = [name] if len(name) <= width else name.replace(" (", "\n(").split("\n")
    return [line.translate(_LATEX) for part in parts for line in _wrap(part, width)] or [""]


def _labeled(shown: Iterable[Table]) -> Iterator[tuple[str, Table]]:
    """Yields tables with labels, which are plain ASCII and differ within a document."""
    known: set[str] = set()
    for table in shown:
        label = re.sub("[^a-z0-9]+", "-", table.title.lower()).strip("-")
        foreign = any(letter.isalpha() and not letter.isascii() for letter in table.title)
        if foreign or label in known:
            label += f"-{zlib.crc32(ascii(table.title).encode()):08x}"
        known.add(label)
        yield f"tab:{label}", table


def to_text(table: Table) -> str:
    """Returns a table for a terminal, with its title and footnotes.

    Standard deviations, the paper's numbers and the differences are in lines below, within 100 columns.
    """
    # The keys of a sweep share a column, which has room for any number of them.
    fold = table.compared == tables.MAIN_RESULT
    head = (", ".join(table.head),) if fold else table.head
    count, numbers = len(head), len(table.columns)
    forms = ("{:<25}", "{:<12}")[:count] + ("{:>7}",) * numbers

    def row(*cells: str) -> str:
        return "".join(map(str.format, forms, cells)).rstrip()

    heads = [*(_wrap(name, 11) for name in head), *(_wrap(c.full, 6) for c in table.columns)]
    stacked = itertools.zip_longest(*map(reversed, heads), fillvalue="")
    lines = [f"{table.caption}, in percent", "", *[row(*names) for names in stacked][::-1]]
    for line in table.lines:
        words = sum((cell.footnotes for cell in line.cells), line.footnotes)
        marks = "".join(f" [{mark}]" for mark in table.marks(line._replace(footnotes=words)))
        label, *others = (", ".join(filter(None, line.labels)),) if fold else line.labels
        *above, last = textwrap.wrap(label + marks, 24) or [""]
        means = [cell._replace(spread=None).number for cell in line.cells]
        lines += [*above, row(last, *others, *means)]
        spreads = ["" if cell.spread is None else f"±{cell.spread:.1f}" for cell in line.cells]
        papers = [f"{cell.paper.percent:.1f}" if cell.paper else "" for cell in line.cells]
        gaps = [cell.difference for cell in line.cells]
        differences = ["" if gap is None else tables.signed(gap) for gap in gaps]
        below = (("  ± std", spreads), ("  paper", papers), ("  difference", differences))
        for name, shown in below:
            lines += [row(name, *[""] * (count - 1), *shown)] * any(shown)
    numbered = enumerate(table.footnotes, start=1)
    notes = [words if words in table.remarks else f"[{i}] {words}" for i, words in numbered]
    return "\n".join([*lines, *[""] * bool(notes), *notes])


def to_csv(shown: Iterable[Table]) -> str:
    """Returns tables as CSV with one number a line; empty cells have none, undefined ones no value.

    The column "std" exists only if a number has a standard deviation over seeds.
    """
    lines: list[dict[str, str]] = []
    for table in shown:
        for line in table.lines:
            for column, cell in zip(table.columns, line.cells, strict=True):
                known = dict(table.keys + line.keys + column.keys + cell.keys)
                if cell.text == "" or "source" not in known:
                    continue
                words = " ".join(dict.fromkeys((*line.footnotes, *cell.footnotes)))
                known["note"] = " ".join(filter(None, (known.get("note"), words)))
                known["value"] = cell.text or ("" if cell.value is None else f"{cell.value:.1f}")
                if cell.spread is not None:
                    known["std"] = f"{cell.spread:.1f}"
                if cell.difference is not None:
                    known["difference"] = f"{cell.difference:.1f}"
                lines.append(known)
    columns = (*LONG_COLUMNS, *["std"] * any("std" in known for known in lines))
    return csv_text([columns, *([known.get(name, "") for name in columns] for known in lines)])
