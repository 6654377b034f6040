"""Tables as markdown, LaTeX, HTML and CSV."""

import csv
import importlib.resources
import io
import itertools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from zsad_jax.report.tables import BEST_PRIOR, SAME_METHOD, Cell, Column, Table, legend

# The columns of a CSV with one number a line; a table, its lines and its columns fill in what they know.
LONG_COLUMNS = (
    *("paper", "table", "dataset", "category", "level", "metric", "method", "setting", "source"),
    *("value", "difference", "note"),
)
TABLES_A_PAGE = 4  # LaTeX can hold back only so many tables that do not fit on a page
LATEX_HEAD = 16  # characters in a line of a column's heading
_LATEX_FITTED = r"\ifdim\wd2>\linewidth\resizebox{\linewidth}{!}{\usebox2}\else\usebox2\fi"
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


def to_markdown(table: Table) -> str:
    """A table as GitHub-flavoured markdown, with its footnotes."""
    heads = [*table.head, *(column.full for column in table.columns)]
    text = [f"### {table.title}", "", _markdown_row(heads)]
    text.append("|" + " --- |" * len(table.head) + " ---: |" * len(table.columns))
    for line in table.lines:
        entries = [*line.labels, *map(_markdown_cell, line.cells)]
        entries[0] += _marks(line.marks, " [{}]")
        text.append(_markdown_row([f"**{e}**" if line.summary and e else e for e in entries]))
    if table.footnotes:
        remarks = (f"[{mark}] {words}  " for mark, words in enumerate(table.footnotes, 1))
        text += ["", *remarks]
    return "\n".join(text) + "\n"


def explained_markdown(tables: Iterable[Table]) -> list[str]:
    """Tables as markdown, before the first of each kind a sentence on how it is to be read."""
    return _explained(tables, to_markdown, "{}\n".format)


def explained_html(tables: Iterable[Table]) -> str:
    """Tables as HTML, before the first of each kind a sentence on how it is to be read."""
    return "".join(
        _explained(tables, to_html, lambda words: f'<p class="legend">{escape(words)}</p>')
    )


def to_latex(table: Table) -> str:
    r"""A table as a LaTeX float for a document that uses booktabs and graphicx.

    Groups of columns are headed by their own line, footnotes stand below; all text is escaped. What would be
    wider than the text is made smaller.
    """
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{_latex(table.title)}}}\par\medskip",
        r"\sbox2{%",
        rf"\begin{{tabular}}{{{'l' * len(table.head)}{'r' * len(table.columns)}}}",
    ]
    lines += [r"\toprule", *_latex_heads(table), r"\midrule"]
    for before, line in zip((None, *table.lines), table.lines, strict=False):
        if before and before.summary != line.summary:
            lines.append(r"\midrule")
        entries = [*map(_latex, line.labels), *map(_latex_cell, line.cells)]
        entries[0] += _marks(line.marks, r"$^{{[{}]}}$")
        if line.summary:
            entries = [rf"\textbf{{{entry}}}" if entry else "" for entry in entries]
        lines.append(" & ".join(entries) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}%", _LATEX_FITTED]
    for mark, words in enumerate(table.footnotes, 1):
        lines.append(rf"\par\raggedright\footnotesize [{mark}] {_latex(words)}")
    return "\n".join([*lines, r"\end{table}", ""])


def latex_document(title: str, remarks: Iterable[str], tables: Sequence[Table]) -> str:
    """Tables for reading with LaTeX's `input`, with the title and remarks as comments."""
    text = [f"% {title}", r"% Read it with \input, after \usepackage{booktabs,graphicx}."]
    text += [f"% {remark}" for remark in remarks]
    for number, table in enumerate(tables):
        if number and number % TABLES_A_PAGE == 0:
            text.append(r"\clearpage")
        text += ["", to_latex(table).rstrip()]
    return "\n".join(text) + "\n"


def to_html(table: Table) -> str:
    """A table as an HTML element of the page that `html_page` makes."""
    edges = _edges(table)
    beside = {i for line in table.lines for i, cell in enumerate(line.cells) if cell.beside}
    lines = []
    for line in table.lines:
        first, *others = map(escape, line.labels)
        marks = _marks(line.marks, "<sup>[{}]</sup>")
        entries = f'<th class="label" scope="row">{first}{marks}</th>'
        entries += "".join(f'<td class="label">{label}</td>' for label in others)
        for index, cell in enumerate(line.cells):
            edge = " class=edge" if index in edges else ""
            entries += f"<td{edge}>{_html_cell(cell, with_small=index in beside)}</td>"
        lines.append(f"<tr{' class=summary' if line.summary else ''}>{entries}</tr>")
    notes = "".join(f"<li>{escape(words)}</li>" for words in table.footnotes)
    notes = f'<ol class="notes">{notes}</ol>' if notes else ""
    kind = " class=compact" if table.compared in (SAME_METHOD, BEST_PRIOR) else ""
    return (
        f'<div class="card"><table{kind}><caption>{escape(table.title)}</caption>'
        f"<thead>{_html_heads(table)}</thead><tbody>{''.join(lines)}</tbody></table>{notes}</div>"
    )


def html_beside(cell: Cell) -> str:
    """What stands beside a cell's value, the difference in brackets."""
    parts = list(cell.beside)
    if cell.difference is not None:
        parts[-1] = f"({parts[-1]})"
    return escape(" ".join(parts))


def html_page(title: str, sections: dict[str, str], *, above: str = "", below: str = "") -> str:
    """One self-contained page.

    Args:
      title: plain text.
      sections: HTML by heading; a section without any is left out.
      above: HTML between the title and the links to the sections.
      below: HTML between these links and the sections.
    """
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{body}</section>'
        for name, body in sections.items()
    )
    style = importlib.resources.files("zsad_jax.report") / "templates" / "report.css"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{above}<nav>{links}</nav>{below}</header><main>{body}</main>"
        "<footer>Made by zsad_jax. 0 is normal, 1 anomalous; a score is per image, a map per pixel.</footer>"
        "</body></html>\n"
    )


def to_csv(tables: Iterable[Table]) -> str:
    """Every number of some tables on a line of its own; empty cells have none, undefined ones no value."""
    lines = []
    for table in tables:
        for line in table.lines:
            for column, cell in zip(table.columns, line.cells, strict=True):
                known = dict(table.keys + line.keys + column.keys + cell.keys)
                if cell.text == "" or "source" not in known:
                    continue
                marks = dict.fromkeys((*line.marks, *cell.marks))
                words = " ".join(table.footnotes[mark - 1] for mark in marks)
                known["note"] = " ".join(filter(None, (known.get("note"), words)))
                known["value"] = cell.text or ("" if cell.value is None else f"{cell.value:.1f}")
                if cell.difference is not None:
                    known["difference"] = f"{cell.difference:.1f}"
                lines.append([known.get(name, "") for name in LONG_COLUMNS])
    return csv_text(LONG_COLUMNS, lines)


def csv_text(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Lines as CSV; None is an empty field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    return file.getvalue()


def _explained(
    tables: Iterable[Table], write: Callable[[Table], str], explain: Callable[[str], str]
) -> list[str]:
    texts: list[str] = []
    known: set[str] = set()
    for table in tables:
        if table.compared not in known:
            texts.append(explain(legend(table.compared)))
            known.add(table.compared)
        texts.append(write(table))
    return texts


def _marks(marks: Iterable[int], form: str) -> str:
    return "".join(form.format(mark) for mark in marks)


def _markdown_cell(cell: Cell) -> str:
    beside = f" ({', '.join(cell.beside)})" if cell.beside else ""
    return f"{cell.number}{beside}{_marks(cell.marks, ' [{}]')}"


def _markdown_row(entries: Iterable[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"


def _latex(words: str) -> str:
    return words.translate(_LATEX)


def _latex_cell(cell: Cell) -> str:
    beside = rf" {{\scriptsize ({_latex(', '.join(cell.beside))})}}" if cell.beside else ""
    return f"{_latex(cell.number)}{beside}{_marks(cell.marks, r'$^{{[{}]}}$')}"


def _latex_heads(table: Table) -> list[str]:
    upper, rules = [""] * len(table.head), []
    start = len(table.head) + 1
    for group, columns in _groups(table):
        upper.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{_latex(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + len(columns) - 1}}}")
        start += len(columns)
    lower = [*map(_latex, table.head), *(_latex_head(column.name) for column in table.columns)]
    return [" & ".join(upper) + r" \\", " ".join(rules), " & ".join(lower) + r" \\"]


def _latex_head(name: str) -> str:
    """A column's name, in several lines if it is long, a bracket on its own."""
    if len(name) <= LATEX_HEAD:
        return _latex(name)
    options: Any = {"break_long_words": False, "break_on_hyphens": False}
    parts = name.replace(" (", "\n(").split("\n")
    lines = [line for part in parts for line in textwrap.wrap(part, LATEX_HEAD, **options)]
    stacked = r" \\ ".join(map(_latex, lines))
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}"


def _html_heads(table: Table) -> str:
    """Two head rows: the groups above, the columns below."""
    upper = "".join(
        f'<th class="label" scope="col" rowspan="2">{escape(head)}</th>' for head in table.head
    )
    for group, columns in _groups(table):
        upper += f'<th class="edge" scope="colgroup" colspan="{len(columns)}">{escape(group)}</th>'
    edges, lower = _edges(table), ""
    for index, column in enumerate(table.columns):
        edge = ' class="edge"' if index in edges else ""
        lower += f'<th{edge} scope="col">{escape(column.name)}</th>'
    return f'<tr class="levels">{upper}</tr><tr>{lower}</tr>'


def _html_cell(cell: Cell, *, with_small: bool) -> str:
    """The value, and below or beside it in small print what it is held against."""
    small = f"<small>{html_beside(cell)}</small>" if with_small else ""
    return f"{escape(cell.number)}{_marks(cell.marks, '<sup>[{}]</sup>')}{small}"


def _groups(table: Table) -> list[tuple[str, list[Column]]]:
    """Neighbouring columns of the same group."""
    return [
        (group, list(columns))
        for group, columns in itertools.groupby(table.columns, lambda column: column.group)
    ]


def _edges(table: Table) -> set[int]:
    """The first column of each group."""
    counts = (len(columns) for _, columns in _groups(table))
    return {0, *itertools.accumulate(counts)}


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
