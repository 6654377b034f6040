import csv
import dataclasses
import io
import re
import shutil
import subprocess

import jinja2
import pytest

from zsad_jax.report import formats
from zsad_jax.report.papers import PaperTables
from zsad_jax.report.tables import EMPTY, SAME_METHOD, Cell, Column, Line, Table
from zsad_jax.utils.text_table import csv_text

KEYS = (("paper", "tps"), ("table", "1"), ("level", "image"), ("metric", "auroc"))
PUBLISHED = (("method", "tps"), ("source", "published"))
OURS = (("method", "tps"), ("setting", "tips-nano"), ("source", "ours"))


@pytest.fixture
def table():
    """Returns a table with a doubtful number, a difference, an undefined number and an empty cell."""
    note = (("note", "suspicious: 5 % off."),)
    return Table(
        title="TPS, Table 1: a_b & c",
        head=("Dataset",),
        columns=(
            Column("TPS", "published", "TPS", PUBLISHED),
            Column("TPS", "ours", "ours: TPS", OURS),
        ),
        lines=(
            Line(
                ("[MVTec] AD",),
                (Cell(90.0, text="90", doubt=True, keys=note), Cell(88.5, reference=90.0)),
                keys=(("dataset", "mvtec_ad"), ("category", "mean")),
            ),
            Line(
                ("a|b <c>",),
                (EMPTY, Cell(footnotes=("No masks.",))),
                keys=(("dataset", "a|b <c>"),),
            ),
            Line(
                ("Mean",),
                (Cell(1.0, text="1.0"), EMPTY),
                ("Without x_y.",),
                summary=True,
                keys=(("dataset", "industrial_mean"), ("category", "mean")),
            ),
        ),
        compared=SAME_METHOD,
        keys=KEYS,
    )


def test_markdown(table):
    assert formats.render("table.md", table=table) == (
        "### TPS, Table 1: a_b & c\n"
        "\n"
        "| Dataset | TPS | ours: TPS |\n"
        "| --- | ---: | ---: |\n"
        "| \\[MVTec] AD | 90† | 88.5 (−1.5) |\n"
        "| a\\|b \\<c> |  | – [1] |\n"
        "| **Mean [2]** | **1.0** |  |\n"
        "\n"
        "[1] No masks.  \n"
        "[2] Without x_y.  \n"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<img src=x>", "\\<img src=x>"),
        ("a|b", "a\\|b"),
        ("a\nb", "a\\\\nb"),
        ("**b** `c` ~d~", "\\*\\*b\\*\\* \\`c\\` \\~d\\~"),
        ("[x](http://y)", "\\[x](http://y)"),
        ("&lt; & $5", "\\&lt; & \\$5"),
        ("metal_nut", "metal_nut"),
    ],
)
def test_markdown_shows_names_as_they_are(table, name, shown):
    line = Line((name,), (EMPTY, EMPTY), (name,))
    text = formats.render("table.md", table=dataclasses.replace(table, title=name, lines=(line,)))
    assert text.startswith(f"### {shown}\n")
    assert f"| {shown} [1] |" in text
    assert f"\n[1] {shown}  \n" in text


def test_latex_labels_are_plain_and_unique(table):
    titles = ("螺丝", "螺母", "a-b", "a b", "ViP²-CLIP, Table 1")
    tables = [dataclasses.replace(table, title=title) for title in titles]
    latex = formats.render("tables.tex", title="x", remarks=[], tables=tables)
    labels = re.findall(r"\\label\{(.*?)\}", latex)
    assert len(set(labels)) == len(titles)
    assert all(re.fullmatch("tab:[a-z0-9-]+", label) for label in labels)
    assert (labels[2], labels[4]) == ("tab:a-b", "tab:vip-clip-table-1")


def test_latex(table):
    assert formats.render("table.tex", table=table, label="tab:x") == (
        "\\begin{table*}[htbp]\n"
        "\\centering\\small\n"
        "\\caption{TPS, Table 1: a\\_b \\& c}\\label{tab:x}\\par\\medskip\n"
        "\\sbox2{%\n"
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        " & \\multicolumn{1}{c}{published} & \\multicolumn{1}{c}{ours} \\\\\n"
        "\\cmidrule(lr){2-2} \\cmidrule(lr){3-3}\n"
        "Dataset & TPS & TPS \\\\\n"
        "\\midrule\n"
        "{[}MVTec{]} AD & 90$^\\dagger$ & 88.5 {\\scriptsize ($-$1.5)} \\\\\n"
        "a\\textbar{}b \\textless{}c\\textgreater{} &  & --$^{[1]}$ \\\\\n"
        "\\midrule\n"
        "\\textbf{Mean$^{[2]}$} & \\textbf{1.0} &  \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}}%\n"
        "\\ifdim\\wd2>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox2}\\else\\usebox2\\fi\n"
        "\\par\\raggedright\\footnotesize [1] No masks.\n"
        "\\par\\raggedright\\footnotesize [2] Without x\\_y.\n"
        "\\end{table*}\n"
    )


def test_html(table):
    text = formats.render("table.html", table=table)
    assert text.replace("\n", "") == (
        '<div class="card"><table class=compact><caption>TPS, Table 1: a_b &amp; c</caption><thead>'
        '<tr class="levels"><th class="label" scope="col" rowspan="2">Dataset</th>'
        '<th class="edge" scope="colgroup" colspan="1">published</th>'
        '<th class="edge" scope="colgroup" colspan="1">ours</th></tr>'
        '<tr><th class="edge" scope="col">TPS</th><th class="edge" scope="col">TPS</th></tr></thead><tbody>'
        '<tr><th class="label" scope="row">[MVTec] AD</th>'
        "<td class=edge>90†</td><td class=edge>88.5<small>(−1.5)</small></td></tr>"
        '<tr><th class="label" scope="row">a|b &lt;c&gt;</th>'
        "<td class=edge></td><td class=edge>–<sup>[1]</sup><small></small></td></tr>"
        '<tr class=summary><th class="label" scope="row">Mean<sup>[2]</sup></th>'
        "<td class=edge>1.0</td><td class=edge><small></small></td></tr></tbody></table>"
        '<ol class="notes"><li>No masks.</li><li>Without x_y.</li></ol></div>'
    )


def test_csv(table):
    assert formats.to_csv([table]) == (
        "paper,table,dataset,category,level,metric,method,setting,source,value,difference,note\n"
        "tps,1,mvtec_ad,mean,image,auroc,tps,,published,90,,suspicious: 5 % off.\n"
        "tps,1,mvtec_ad,mean,image,auroc,tps,tips-nano,ours,88.5,-1.5,\n"
        "tps,1,a|b <c>,,image,auroc,tps,tips-nano,ours,,,No masks.\n"
        "tps,1,industrial_mean,mean,image,auroc,tps,,published,1.0,,Without x_y.\n"
    )


def test_csv_quotes_special_characters():
    text = csv_text([["a", "b"], ['x, "y"', None]])
    assert list(csv.reader(io.StringIO(text))) == [["a", "b"], ['x, "y"', ""]]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        *((text, f"'{text}") for text in ("=1+1", "+cmd", "-x", "@SUM(A1)")),
        ("\t=1", "\\t=1"),
        ("a\r\nb", "a\\r\\nb"),
    ],
)
def test_csv_has_neither_formulas_nor_line_breaks(text, field):
    assert csv_text([[text]]) == f"{field}\n"


def test_csv_keeps_numbers():
    assert csv_text([["-1.5", "+2", -3, "a=1", "-1e-05"]]) == "-1.5,+2,-3,a=1,-1e-05\n"


@pytest.mark.parametrize("character", "&%$#_{}\\~^<>|[]–−±²†·×…")
def test_latex_escapes_special_characters(table, character):
    text = formats.render(
        "table.tex", label="tab:x", table=dataclasses.replace(table, title=f"<{character}>")
    )
    caption = text.splitlines()[2].removeprefix("\\caption{\\textless{}")
    escaped = caption.removesuffix("\\textgreater{}}\\label{tab:x}\\par\\medskip")
    assert escaped != character
    assert escaped.isascii()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("AUPRO", []),
        ("AUPRO (200 steps)", ["AUPRO", "(200 steps)"]),
        (
            "TPS, variant: normal/abnormal_words (HeadCT)",
            ["TPS, variant:", "normal/abnormal\\_words", "(HeadCT)"],
        ),
    ],
)
def test_long_headings_of_latex_are_split_into_lines(table, name, lines):
    columns = (table.columns[0], Column(name, "ours", name))
    text = formats.render(
        "table.tex", label="tab:x", table=dataclasses.replace(table, columns=columns)
    )
    stacked = "\\begin{tabular}[b]{@{}r@{}}" + " \\\\ ".join(lines) + "\\end{tabular}"
    assert f"Dataset & TPS & {stacked if lines else name} \\\\\n" in text


def latex(title, remarks, tables):
    return formats.render("tables.tex", title=title, remarks=remarks, tables=tables)


def test_latex_breaks_long_labels(table):
    line = Line(
        ("CLIP's sentences, method CLIP, image score global",), (EMPTY, EMPTY), summary=True
    )
    text = formats.render(
        "table.tex", label="tab:x", table=dataclasses.replace(table, lines=(line,))
    )
    assert (
        "\\textbf{\\begin{tabular}[b]{@{}l@{}}CLIP's sentences, method \\\\ CLIP, image score global"
        "\\end{tabular}} &  &  \\\\\n"
    ) in text


@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_latex_compiles_without_overfull_boxes(table, tmp_path, columns):
    if not shutil.which("pdflatex") or subprocess.run(["kpsewhich", "booktabs.sty"]).returncode:
        pytest.skip("there is no LaTeX with booktabs to compile it")
    wide = tuple(Column(f"A method ({i} words of text)", "ours", str(i)) for i in range(12))
    lines = (Line(("A dataset [1]",), tuple(Cell(1.0, reference=2.0) for _ in wide)),)
    wide_table = dataclasses.replace(table, columns=wide, lines=lines)
    (tmp_path / "tables.tex").write_text(latex("T", [], [table, wide_table]))
    (tmp_path / "page.tex").write_text(
        f"\\documentclass[{columns}]{{article}}"
        "\\usepackage{booktabs,graphicx}"
        "\\begin{document}\\input{tables}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert "Overfull" not in (tmp_path / "page.log").read_text(errors="replace")


def test_latex_names_its_packages_and_clears_pages(table):
    text = latex("A title", ["50 % of it."], [table] * 9)
    assert text.startswith("% A title\n")
    assert "\\usepackage{booktabs,graphicx}" in text.splitlines()[1]
    assert "% 50 % of it." in text.splitlines()
    pages = text.split("\\clearpage")
    assert [page.count("\\begin{table*}") for page in pages] == [4, 4, 1]


def test_legend_of_each_kind_of_table_is_shown_once(table):
    text = formats.render("explained.md", tables=[table, table])
    assert text.count("the same method") == 1
    assert text.count("### TPS") == 2
    text = formats.render("explained.html", tables=[table, table])
    assert text.count('class="legend"') == 1


def test_page_omits_empty_sections():
    paper = PaperTables(paper="tps", title="A <b>", tables=[], datasets=[])
    page = formats.render("papers.html", title="A <b>", remarks=["<up>"], papers=[paper])
    assert "<title>A &lt;b&gt;</title>" in page
    assert '<p class="soft">&lt;up&gt;</p>' in page
    assert '<a href="#tps">TPS</a>' in page
    assert page.count("<section") == 1
    assert "<section" not in formats.render("papers.html", title="", remarks=[], papers=[])


def test_missing_template_variable_is_an_error(table):
    with pytest.raises(jinja2.UndefinedError, match="'remarks' is undefined"):
        formats.render("tables.tex", title="T", tables=[table])
