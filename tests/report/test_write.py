import base64
import csv
import dataclasses
import io
import json
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from zsad_jax.data.issues import Issue
from zsad_jax.report import write, write_report
from zsad_jax.report.html import PICTURES_IN_ALL, format_quantity, render_page
from zsad_jax.report.rows import combine_seeds
from zsad_jax.report.write import DEMONSTRATION, figure_name
from zsad_jax.utils.errors import UserError

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """A parser that collects a page's references, and checks that its elements are nested correctly."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.ids, self.anchors, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.sources += [values[key] for key in ("src", "srcset", "data") if key in values]
        if tag == "a":
            self.anchors.append(values["href"])
        if tag == "section":
            self.ids.append(values["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(report):
    checker = Checker()
    text = render_page(report)
    checker.feed(text)
    assert checker.open == []
    return text, checker


def test_page_is_self_contained(page):
    text, checker = page
    assert text.startswith("<!doctype html>\n")
    assert text.endswith("</html>\n")
    assert not text.endswith("\n\n")
    assert all(source.startswith("data:image/jpeg;base64,") for source in checker.sources)
    assert all(anchor.startswith("#") for anchor in checker.anchors)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in checker.tags}
    assert not re.search(r"url\((?!#)|@import", text)
    assert [anchor[1:] for anchor in checker.anchors] == checker.ids


def test_every_image_has_a_description(page):
    _, checker = page
    pictures = [values for tag, values in checker.tags if tag == "img"]
    assert len(pictures) == 8
    assert all("score" in values["alt"] for values in pictures)
    charts = [values for tag, values in checker.tags if tag == "svg"]
    assert len(charts) == 3
    assert all(values["role"] == "img" and values["aria-label"] for values in charts)


def test_images_decode(page):
    _, checker = page
    image = Image.open(io.BytesIO(base64.b64decode(checker.sources[0].partition(",")[2])))
    assert image.width > 3 * image.height  # image, map and overlay of 60 x 40


def test_page_escapes_text_and_contains_all_facts(page):
    text, _ = page
    assert "TIPSomaly &lt;on&gt; tips-nano" in text
    assert "ring/&lt;9&gt;.png" in text
    for words in (
        DEMONSTRATION,
        "the file is truncated",
        "not prepared",
        "2.5 min",
        "1.00 GiB",
        "1.50 s",
    ):
        assert words in text
    assert "Pixel AP: no masks." in text
    assert "fixed prompts" in text
    assert "prefers-color-scheme: dark" in text


def test_banner_only_for_demonstration_models(report):
    assert DEMONSTRATION not in render_page(dataclasses.replace(report, demonstration=False))


def test_number_of_images_is_limited_over_many_datasets(report, cases):
    many = [dataclasses.replace(case, dataset=f"set{i}") for i in range(40) for case in cases]
    text = render_page(dataclasses.replace(report, cases=many, scores=[]))
    assert 0 < text.count("<img") <= max(PICTURES_IN_ALL, 4 * 40)


def test_minimal_report_is_a_page(report):
    bare = dataclasses.replace(
        report,
        comparisons=(),
        scores=(),
        cases=(),
        history=(),
        issues={},
        run={},
        skipped={},
        config_text="",
    )
    checker = Checker()
    checker.feed(render_page(bare))
    assert checker.ids == ["results"]


def test_report_includes_table_of_the_paper(report, make_row, tmp_path):
    rows = [make_row(key, image_auroc=0.9) for key in ("mvtec_ad", "visa", "headct")]
    report = dataclasses.replace(report, rows=rows, cases=(), scores=())
    text = render_page(report)
    assert '<section id="comparison-with-the-papers">' in text
    assert text.count("TIPSomaly, Table 1: ") == 6
    section = text.partition('<section id="comparison-with-the-papers">')[2].partition(
        "</section>"
    )[0]
    assert "AnomalyCLIP" in section
    assert "MPDD" not in section
    assert "<small>(−3.4)</small>" in section
    write_report(tmp_path, report)
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "## Comparison with the papers\n" in markdown
    assert "| VisA | 78.0 | 82.1 | 85.8 | 87.7 | 90.0 (+2.3) |" in markdown
    latex = (tmp_path / "results.tex").read_text(encoding="utf-8")
    assert latex.startswith("% TIPSomaly <on> tips-nano\n")
    assert "% Demo model, not for decisions." in latex
    assert "VisA & 78.0 & 82.1 & 85.8 & 87.7 & 90.0 {\\scriptsize (+2.3)} \\\\" in latex


def test_headlines_are_domain_means(report, make_row):
    rows = [make_row(key) for key in ("mvtec_ad", "visa", "headct", "br35h")]
    text = render_page(dataclasses.replace(report, rows=rows, cases=(), scores=()))
    head = text.partition("</header>")[0]
    assert head.count('<div class="tiles">') == 2
    assert head.index("Industrial mean, in percent") < head.index("Medical mean, in percent")
    assert head.count("<span>Images</span>") == 1


def test_titles_of_all_tables_name_what_differs_from_the_config(report, tmp_path):
    changed = {"method.sigma": 8.0, "comparisons": "x" * 100}
    changed_report = dataclasses.replace(report, run={**report.run, "changed_keys": changed})
    tables = [*changed_report.tables, *changed_report.paper_tables]
    assert tables
    ending = f" (method.sigma=8.0, comparisons={'x' * 68}…)"
    assert all(table.caption == table.title + ending for table in tables)
    write_report(tmp_path, changed_report)
    for name in ("results.md", "results.tex", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8").replace("\\_", "_")
        assert text.count("(method.sigma=8.0, ") >= len(tables), name
    assert all(table.caption == table.title for table in report.tables)


def test_writes_expected_files(report, tmp_path):
    write_report(tmp_path, report)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    expected = {"results.md", "results.csv", "results.tex", "report.html", "figures/training.png"}
    expected.add("figures/.written.json")
    folder = "figures/synthetic_target"
    expected |= {f"{folder}/{name}.png" for name in ("score_histogram", "roc")}
    expected |= {f"{folder}/{category}_{i}.png" for category in ("gear", "ring") for i in range(4)}
    assert files == expected
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert markdown.startswith("# TIPSomaly \\<on> tips-nano\n\n> **Demo model")
    assert "- VisA: not prepared" in markdown
    assert (
        "- synthetic_target/ring/\\<9>.png: the image cannot be read (the file is truncated)"
        in markdown
    )
    rows = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8")))
    assert [row["table"] for row in rows] == ["main"] * 3 + ["comparison"]
    assert all(row["notes"].startswith(DEMONSTRATION) for row in rows)


def test_equal_reports_are_byte_equal(report, tmp_path):
    contents = []
    for name in ("a", "b"):
        write_report(tmp_path / name, dataclasses.replace(report, cases=report.cases[:2]))
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("category", "file_name", "expected"),
    [
        ("bottle", "bottle/test/broken_large/000.png", "bottle_test_broken_large_000.png"),
        ("brain", "yes/Y1 (2).JPG", "brain_yes_Y1__2_.JPG-637834c8.png"),
        ("", "../a.png", "a.png"),
    ],
)
def test_figure_names(cases, category, file_name, expected):
    assert (
        figure_name(dataclasses.replace(cases[0], category=category, file_name=file_name))
        == expected
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("total_seconds", 0.5, "0.50 s"),
        ("parts_seconds", 8000, "2.2 h"),
        ("peak_memory_bytes", 2**20, "1.0 MiB"),
        ("device_wait_share", 0.0312, "3.1%"),
        ("command", ["a", "b"], "a b"),
        ("devices", ["a", "b"], "a, b"),
        ("x", True, "yes"),
        ("x", None, "–"),
    ],
)
def test_formats_quantities(key, value, words):
    assert format_quantity(key, value) == words


def test_missing_masks_of_the_run_remove_the_difference_in_all_files(report, make_row, tmp_path):
    rows = [make_row("rsdds_113", method="tps", pixel_auroc=0.662)]
    words = "RSDDs-113: 53 of 113 anomalous images have no usable mask."
    for run, missing in (({}, False), ({"anomalous_without_mask": {"rsdds_113": 53}}, True)):
        report = dataclasses.replace(
            report, rows=rows, comparisons=(), cases=(), scores=(), run=run
        )
        write_report(tmp_path, report)
        for name in ("results.md", "results.csv", "results.tex", "report.html"):
            text = (tmp_path / name).read_text(encoding="utf-8")
            assert (words in text) == missing, name
            assert bool(re.search("[-−]30[.]1|[$]-[$]30[.]1", text)) != missing, name


HOSTILE = [
    "",
    ".",
    "..",
    "../../victim",
    "/victim",
    "a/b",
    "a\\b",
    "cost $5 or $6",
    "a\nb",
    "x" * 300,
]
HOSTILE += [os.fsdecode(b"caf\xe9"), "\x00", "正常"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_neither_escape_the_directory_nor_stop_the_report(name, report, tmp_path):
    """Uses hostile names of datasets, categories and files, which come from users."""
    for place in ("victim", "outer/victim"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "mine.png").touch()
    before = sorted(tmp_path.rglob("*"))
    fields = {"dataset": name, "category": name, "file_name": f"{name}/{name}.png"}
    hostile = dataclasses.replace(
        report,
        cases=[dataclasses.replace(case, **fields) for case in report.cases[:2]],
        scores=[dataclasses.replace(report.scores[0], dataset=name, categories=[name] * 8)],
        issues={name: [Issue("image_unreadable", name, name)]},
        skipped={name: name},
    )
    workdir = tmp_path / "outer/runs/mine"
    for _ in range(2):
        write_report(workdir, hostile)
        outside = [path for path in sorted(tmp_path.rglob("*")) if "runs" not in path.parts]
        assert outside == before
    figures = list((workdir / "figures").rglob("*.png"))
    assert len(figures) == 4  # the two cases have the same name
    write_report(workdir, dataclasses.replace(report, cases=(), scores=(), history=()))
    assert not list((workdir / "figures").rglob("*.png"))


@pytest.mark.parametrize("text", ["", "3", "[" * 9999])
def test_replaces_a_damaged_record_of_figures(report, tmp_path, text):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/.written.json").write_text(text)
    write_report(tmp_path, dataclasses.replace(report, cases=(), scores=(), history=()))
    assert json.loads((tmp_path / "figures/.written.json").read_text()) == []


def test_does_not_remove_files_named_in_an_edited_record(report, tmp_path):
    victim = tmp_path / "victim.png"
    victim.touch()
    figures = tmp_path / "run/figures"
    (figures / "folder.png").mkdir(parents=True)
    (figures / "mine.png").touch()
    (figures / "link").symlink_to(tmp_path, target_is_directory=True)
    names = ["../../victim.png", str(victim), "link/victim.png", "folder.png", 3, "gone.png"]
    (figures / ".written.json").write_text(json.dumps(names))
    write_report(tmp_path / "run", report)
    assert victim.exists()
    assert (figures / "folder.png").is_dir()
    assert (figures / "mine.png").exists()


def test_warns_of_figure_that_cannot_be_drawn(report, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(write.charts, "roc_figure", lambda scores: 1 / 0)
    write_report(tmp_path, report)
    assert "Cannot draw synthetic_target/roc.png: division by zero." in caplog.text
    assert (tmp_path / "report.html").exists()


def test_does_not_write_figures_through_a_link(report, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for link in ("figures", "figures/synthetic_target"):
        workdir = tmp_path / link.replace("/", "-")
        (workdir / link).parent.mkdir(parents=True)
        (workdir / link).symlink_to(elsewhere, target_is_directory=True)
        with pytest.raises(UserError, match=r"is a link\. Figures are written to real folders"):
            write_report(workdir, report)
        assert not list(elsewhere.iterdir())


def test_charts_of_a_sweep_are_among_the_figures_and_on_the_page(tmp_path, report, make_row):
    points = {f"sigma={value}": {"method.sigma": value} for value in (4.0, 8.0)}
    dataset = report.scores[0].dataset
    swept = dataclasses.replace(
        report,
        comparisons=[make_row(dataset, variant=label) for label in points],
        run={"sweep": {"points": points}},
    )
    write_report(tmp_path, swept)
    chart = tmp_path / "figures" / dataset / "ablation_sigma.png"
    assert chart.is_file()
    page = (tmp_path / "report.html").read_text()
    assert 'aria-label="Metrics over sigma on Synthetic (target)"' in page
    assert "method.sigma" not in page
    assert "### Synthetic (target): ablation" in (tmp_path / "results.md").read_text()
    write_report(tmp_path, report)
    assert not chart.exists()


@pytest.mark.parametrize("name", ["results.md", "results.csv", "results.tex", "report.html"])
def test_single_seed_has_no_deviations(tmp_path, report, name):
    write_report(tmp_path / "before", report)
    once = dataclasses.replace(report, rows=combine_seeds(report.rows))
    write_report(tmp_path / "after", once)
    text = (tmp_path / "before" / name).read_text()
    assert (tmp_path / "after" / name).read_text() == text
    assert not re.search(r"standard deviation|_std|\bseeds\b|\d ± \d|\d \$\\pm\$ \d", text)
