import csv
import io
import json
import re

import pytest

from zsad_jax.report.__main__ import main

FILES = ("tables.csv", "tables.html", "tables.md", "tables.tex")


@pytest.fixture
def workdir(tmp_path, make_row):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [make_row("visa", c, image_auroc=0.9) for c in ("candle", "mean")] + [make_row("mpdd")]
    (folder / "results.json").write_text(json.dumps(rows))
    (folder / "comparisons.json").write_text(
        json.dumps([make_row("visa", variant="fixed prompts")])
    )
    return str(folder)


def test_prints_markdown(workdir, capsys):
    assert main([workdir, "--paper", "tipsomaly"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Comparison with the papers\n\nOurs, TIPSomaly: ")
    assert "| VisA | 78.0 | 82.1 | 85.8 | 87.7 | 90.0 (+2.3) [1] |" not in text
    assert "| MPDD | 73.0 | 77.0 | 76.0 | 74.7 | 50.0 (−24.7) |" in text
    assert text.count("TIPSomaly was not run on MVTec AD, BTAD") == 1
    assert "## ViP²-CLIP" not in text
    assert "fixed prompts" not in text


def test_all_includes_ablations_and_comparisons(workdir, capsys):
    assert main([workdir, "--paper", "tps", "--all"]) == 0
    text = capsys.readouterr().out
    assert "ours: TIPSomaly (fixed prompts)" in text
    assert "TPS, variant: trained on medical data (HeadCT)" in text


def test_single_table_as_csv(workdir, capsys):
    assert main([workdir, "--paper", "vip2clip", "--table", "10", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(row["paper"], row["table"], row["metric"]) for row in rows} == {
        ("vip2clip", "10", "auroc")
    }
    ours = [row for row in rows if row["source"] == "ours"]
    assert [row["category"] for row in ours] == ["candle", "mean"]
    assert ours[0]["value"] == "50.0"
    assert len(rows) == 78 + 2


def test_table_number_selects_from_every_paper(workdir, capsys):
    assert main([workdir, "--table", "2", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["paper"] for row in rows} == {"vip2clip", "tps", "faprompt"}


def test_prints_gains_only(workdir, capsys):
    assert main([workdir, "--paper", "tps", "--table", "gain"]) == 0
    text = capsys.readouterr().out
    assert text.count("### ") == text.count("### TPS: gain over the best prior method") == 1
    assert "TIPSomaly was not run on MVTec AD, BTAD" in text


@pytest.mark.parametrize("format", ["latex", "html"])
def test_prints_other_formats(workdir, capsys, format):
    assert main([workdir, "--paper", "tps", "--format", format]) == 0
    text = capsys.readouterr().out
    assert {"latex": "\\toprule", "html": "<!doctype html>"}[format] in text


@pytest.mark.parametrize(("rows", "options"), [([], []), (["my_parts"], ["--paper", "tps"])])
def test_reports_runs_without_paper(tmp_path, make_row, capsys, rows, options):
    (tmp_path / "results.json").write_text(json.dumps([make_row(name) for name in rows]))
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), *options])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert f"Found no results in {tmp_path} for the datasets of these tables (" in printed.err
    assert not printed.out


def test_combines_seeds_of_demo_runs(tmp_path, make_row, capsys):
    for seed, value in ((1, 0.6), (2, 0.8)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        row = make_row("synthetic_target", seed=seed, checkpoint=f"x-{seed}", image_auroc=value)
        (folder / "results.json").write_text(json.dumps([row]))
        (folder / "run.json").write_text(json.dumps({"demonstration": True}))
    workdirs = [str(tmp_path / "1"), str(tmp_path / "2")]
    assert main(workdirs) == 0
    text = capsys.readouterr().out
    assert "deviation over 2 seeds (1, 2). Demo model, not for decisions." in text
    assert "### TIPSomaly: Datasets\n" in text
    assert "| Synthetic (target) | 10 (4) | 70.0 ± 14.1 |" in text
    assert "MVTec AD" not in text.split("##")[-1]
    assert main([*workdirs, "--format", "csv"]) == 0
    (line,) = (
        one
        for one in csv.DictReader(io.StringIO(capsys.readouterr().out))
        if one["metric"] == "image_auroc"
    )
    assert [line[key] for key in ("dataset", "category", "source", "value", "std")] == [
        *("synthetic_target", "mean", "ours", "70.0", "14.1")
    ]


def test_other_datasets_follow_those_of_the_papers(workdir, tmp_path, make_row, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps([make_row("my_parts", image_auroc=0.7)]))
    assert main([workdir, str(folder)]) == 0
    headings = re.findall("^## (.*)", capsys.readouterr().out, re.MULTILINE)
    assert headings == ["TIPSomaly", "ViP²-CLIP", "TPS", "FAPrompt", "Other datasets"]


def test_writes_files(workdir, tmp_path, capsys):
    folder = tmp_path / "deep" / "tables"
    assert main([workdir, "--out", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == list(FILES)
    assert set(capsys.readouterr().out.split()) == {str(folder / name) for name in FILES}
    before = {name: (folder / name).read_bytes() for name in FILES}
    html = before["tables.html"].decode()
    assert re.findall(r'<a href="#([^"]+)">', html) == re.findall(r'<section id="([^"]+)">', html)
    assert before["tables.tex"].decode().count("\\begin{table*}") == html.count("<table")
    assert before["tables.md"].decode().count("### ") == html.count("<table")
    assert main([workdir, "--out", str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--paper", "nobody"], "Unknown paper 'nobody'. Available: tipsomaly"),
        (["--paper", "tps", "--table", "7"], "Unknown table '7'. Available: 1, 2, 3, gain of tps."),
        (["--table", "postre"], "Unknown table 'postre'. Did you mean poster?"),
        (["--table", "99"], "Unknown table '99'. Available: 1, poster, gain of tipsomaly; 1, 2,"),
        (["nowhere"], "nowhere has no results.json"),
    ],
)
def test_mistakes_end_with_an_error(workdir, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_:
        main([workdir, *arguments])
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
