"""Tests of `python -m zsad_jax.data` on benchmarks: exit codes, output and mistakes."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data import __main__ as command
from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.utils.images import OUTLINE

TINY = {"bottle": (2, 3), "metal_nut": (2, 3)}  # the test split of the miniature


@pytest.fixture
def official(make_miniature, tmp_path):
    """Writes the official layouts of three benchmarks below one folder."""
    for name in ("mvtec_ad", "visa"):
        make_miniature(name, tmp_path / "official" / name)
    make_miniature("elpv", tmp_path / "official")  # at the maximum search depth
    return tmp_path / "official"


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command with this test's data folder; returns exit code, stdout and stderr."""

    def call(*arguments):
        words = [str(argument) for argument in arguments]
        try:
            code = command.main([*words, "--data_dir", str(tmp_path / "data")])
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def published_miniature(change_facts):
    """Sets the published counts of MVTec AD to those of the miniature."""
    counts = {"train": {"bottle": (3, 0), "metal_nut": (3, 0)}, "test": TINY}
    change_facts("mvtec_ad", counts=counts)


def lines_with(text, *parts):
    return [line for line in text.splitlines() if all(part in line for part in parts)]


def test_prepares_several_benchmarks_from_parent_folder(run, official, tmp_path):
    code, out, _ = run("prepare", "mvtec_ad", "visa", "elpv", "--source", official)
    assert code == 0
    assert all(benchmarks.is_prepared(name, tmp_path / "data") for name in DATASETS if name in out)
    for title in ("MVTec AD", "VisA", "ELPV"):
        assert lines_with(out, f"{title} is stored in {tmp_path / 'data'}")
    assert lines_with(out, "mvtec_ad", "bottle", "3 / 0", "209 / 0", "2 / 3", "20 / 63")
    assert lines_with(out, "mvtec_ad", "all", "6 / 0", "3629 / 0", "4 / 6", "467 / 1258")
    assert "test/bottle: 2 normal and 3 anomalous images instead of 20 and 63" in out
    assert lines_with(
        out,
        "note: 6 files: the mask has more than two gray levels",
        "candle/Data/Images/Anomaly/000",
    )


def test_prepares_others_if_one_fails(run, official, tmp_path):
    code, out, err = run("prepare", "mpdd", "elpv", "--source", official)
    assert code == 2
    assert "MPDD" in lines_with(err, "error:")[0]
    assert "Failed to prepare 1 of 2 benchmarks (mpdd)." in err
    assert "ELPV is stored in" in out
    assert not benchmarks.is_prepared("mpdd", tmp_path / "data")


def test_all_prepares_freely_available_benchmarks(run, official, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "names", lambda: ["elpv", "mvtec_ad", "visa"])
    assert run("prepare", "all", "--source", official)[0] == 0
    data = tmp_path / "data"
    assert [benchmarks.is_prepared(name, data) for name in benchmarks.names()] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prepare", "mvtek"), "Unknown benchmark 'mvtek'. Did you mean mvtec_ad"),
        (("prepare", "MVTec-AD"), "Did you mean mvtec_ad"),
        (("verify", "brain_mri"), "Did you mean brainmri"),
        (("show", "xyzzy"), "Available: mvtec_ad, visa"),
        (("list", "--categories", "elvp"), "Did you mean elpv"),
        (("prepare", "mvtec_ad", "--source", "nowhere"), "nowhere does not exist"),
        (("verify", "mvtec_ad"), "python -m zsad_jax.data prepare mvtec_ad --data_dir"),
        (("show", "visa"), "python -m zsad_jax.data prepare visa --data_dir"),
    ],
)
def test_mistakes_end_with_an_error_and_code_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_rejects_wrong_and_empty_sources(run, official, tmp_path):
    (tmp_path / "empty").mkdir()
    half = tmp_path / "mvtec_anomaly_detection.tar.xz"
    half.write_bytes(b"half of it")
    for source in (official / "visa", tmp_path / "empty", half):
        code, _, err = run("prepare", "mvtec_ad", "--source", source)
        assert code == 2
        assert "MVTec AD" in lines_with(err, "error:")[0]
        assert not benchmarks.is_prepared("mvtec_ad", tmp_path / "data")


def test_issues_are_grouped_by_kind_unless_all_are_requested(run, official, tools):
    bottle = official / "mvtec_ad/mvtec_anomaly_detection/bottle"
    for number in range(200):
        name = f"{number + 100}.png"
        tools.save(tools.draw(number), bottle / "test/broken_large" / name)
        if number % 2:
            mask = tools.draw_mask(number, size=(5, 5 + number % 4))
            tools.save_mask(mask, bottle / "ground_truth/broken_large" / name)
    code, out, _ = run("prepare", "mvtec_ad", "--source", official)
    assert code == 0
    assert len(lines_with(out, "issue: ")) == 2
    assert lines_with(
        out, "issue: 100 files: the mask is missing (bottle/test/broken_large/100.png, "
    )
    words = "100 files: the mask differs in size from the image"
    assert lines_with(out, words, ": 5x6, the image 12x9 (50), 5x8, the ", "/105.png, …)")
    assert lines_with(out, "200 issues. To list all: python -m zsad_jax.data verify")
    code, out, _ = run("verify", "mvtec_ad", "--all")
    assert code == 1
    assert len(lines_with(out, "issue: bottle/test/broken_large/")) == 200
    assert lines_with(out, "200 unusable samples")


def test_verify_accepts_published_counts(run, official, published_miniature):
    run("prepare", "mvtec_ad", "--source", official)
    code, out, _ = run("verify", "mvtec_ad", "--workers", "3")
    assert code == 0
    assert "all counts match the published ones" in out
    assert "MVTec AD: all images and masks are usable" in out
    assert lines_with(out, "mvtec_ad", "all", "6 / 0", "4 / 6")
    assert "issue" not in out


def test_verify_accepts_empty_masks(run, official, published_miniature):
    """Uses an anomalous image with an empty mask, which official archives contain."""
    truth = official / "mvtec_ad/mvtec_anomaly_detection/bottle/ground_truth"
    Image.new("L", (12, 9)).save(truth / "combined/000_mask.png")
    run("prepare", "mvtec_ad", "--source", official)
    code, out, _ = run("verify", "mvtec_ad")
    assert code == 0
    assert lines_with(out, "issue: bottle/test/combined/000.png", "its mask is empty")
    assert out.splitlines()[-1] == ("MVTec AD: all files can be read; 1 issue")
    assert "To list all" not in out


def test_verify_reports_missing_volumes_and_categories(run, make_miniature, tmp_path):
    for name in ("msd_lung", "dtd_synthetic"):
        make_miniature(name, tmp_path / "official" / name)
        assert run("prepare", name, "--source", tmp_path / "official" / name)[0] == 0
    code, out, _ = run("verify", "msd_lung")
    assert code == 1
    assert "published count differs: test/lung_096: this category has no images" in out
    assert lines_with(out, "msd_lung", "lung_096", "0 / 0", "–")
    assert "61 differences from the published counts;" in out.splitlines()[-1]
    code, out, _ = run("verify", "dtd_synthetic")
    assert code == 1
    assert "test/Woven_127: this category has no images" in out
    assert lines_with(out, "dtd_synthetic", "Woven_127", "0 / 0", "–")


@pytest.mark.parametrize("issue", ["truncated", "no image", "mask", "other size"])
def test_verify_reports_unusable_images_and_masks(run, official, published_miniature, issue):
    bottle = official / "mvtec_ad/mvtec_anomaly_detection/bottle"
    image, mask = bottle / "test/combined/000.png", bottle / "ground_truth/combined/000_mask.png"
    reason = {
        "truncated": lambda: image.write_bytes(image.read_bytes()[:-40]) and "damaged",
        "no image": lambda: image.write_text("nothing") and "it is not an image",
        "mask": lambda: mask.write_text("nothing") and "the mask cannot be read",
        "other size": lambda: Image.new("L", (5, 5), 9).save(mask) or "(5x5, the image 12x9)",
    }[issue]()
    assert run("prepare", "mvtec_ad", "--source", official)[0] == 0
    code, out, _ = run("verify", "mvtec_ad")
    assert code == 1
    assert lines_with(out, "issue: bottle/test/combined/000.png", reason)
    assert out.splitlines()[-1] == "MVTec AD: 1 unusable sample; 1 issue"


def test_verify_reports_damaged_and_contradictory_records(
    run, official, published_miniature, tmp_path
):
    run("prepare", "mvtec_ad", "--source", official)
    folder = tmp_path / "data/mvtec_ad/1.0.0"
    metadata = folder / "metadata.json"
    description = json.loads(metadata.read_text())
    description["counts"]["test"]["bottle"] = [2, 4]
    metadata.write_text(json.dumps(description))
    code, out, _ = run("verify", "mvtec_ad")
    assert code == 1
    words = "test/bottle: 2 normal and 3 anomalous images instead of 2 and 4"
    assert f"recorded count differs: {words}" in out
    records = next(folder.glob("*test.array_record*"))
    records.write_bytes(records.read_bytes()[: records.stat().st_size // 2])
    code, out, _ = run("verify", "mvtec_ad")
    assert code == 1
    assert lines_with(out, "issue: 10 files: the record cannot be read")
    assert lines_with(out, "mvtec_ad", "all", "0 / 0")
    metadata.write_text("{")
    code, _, err = run("verify", "mvtec_ad")
    assert code == 2
    assert "is damaged" in err
    assert "Delete it and prepare it again" in err


def test_incomplete_preparation_is_not_prepared(run, official, tmp_path):
    run("prepare", "mvtec_ad", "--source", official)
    folder = tmp_path / "data/mvtec_ad"
    (folder / "1.0.0").rename(folder / "incomplete.XYZ_1.0.0")
    assert run("verify", "mvtec_ad")[0] == 2
    rows = list(csv.DictReader(io.StringIO(run("list", "--format", "csv")[1])))
    assert next(row for row in rows if row["dataset"] == "mvtec_ad")["test normal"] == ""


@pytest.fixture
def copy(official, tmp_path):
    """Writes a copy of the metal nuts with a meta.json, in the form in which MPDD circulates."""
    source = official / "mvtec_ad/mvtec_anomaly_detection/metal_nut"
    shutil.copytree(source, tmp_path / "data/MPDD/metal_nut")
    entries = []
    for kind, label in (("good/000", 0), ("good/001", 0), ("combined/000", 1)):
        mask = f"metal_nut/ground_truth/{kind}_mask.png" if label else ""
        entry = {"img_path": f"metal_nut/test/{kind}.png", "mask_path": mask, "anomaly": label}
        entries.append(entry | {"cls_name": "metal_nut", "specie_name": kind.split("/")[0]})
    content = {"train": {}, "test": {"metal_nut": entries}}
    (tmp_path / "data/MPDD/meta.json").write_text(json.dumps(content))


def test_verifies_and_lists_copies_with_meta_json(run, copy):
    code, out, _ = run("verify", "mpdd")
    assert code == 1
    assert lines_with(out, "mpdd", "metal_nut", "2 / 1")
    assert "test/tubes: 0 normal and 0 anomalous images instead of 32 and 69" in out
    assert "train" not in out  # the copy has no training split
    rows = list(csv.DictReader(io.StringIO(run("list", "--format", "csv")[1])))
    row = next(row for row in rows if row["dataset"] == "mpdd")
    assert (row["test normal"], row["test anomalous"]) == ("2", "1")
    assert (row["published test normal"], row["published test anomalous"]) == ("176", "282")
    assert row["state"] == "a copy with meta.json, counts differ"


def test_reports_missing_training_images_of_a_copy(run, copy, tmp_path):
    path = tmp_path / "data/MPDD/meta.json"
    content = json.loads(path.read_text())
    content["train"] = {"metal_nut": [{"img_path": "metal_nut/train/good/999.png", "anomaly": 0}]}
    path.write_text(json.dumps(content))
    code, out, _ = run("verify", "mpdd")
    assert code == 1
    assert "issue: meta.json: none of the images of a split exists (train)" in out
    assert "train/tubes: 0 normal and 0 anomalous images instead of 122 and 0" in out
    assert run("show", "mpdd", "--split", "train", "--out", tmp_path / "sheet.png")[0] == 0
    content["train"] = 3
    path.write_text(json.dumps(content))
    code, _, err = run("verify", "mpdd")
    assert code == 2
    assert "not a valid meta.json" in err


def test_list_matches_table_of_the_paper(run, official, published_miniature):
    run("prepare", "mvtec_ad", "--source", official)
    code, out, _ = run("list", "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["dataset"] for row in rows] == list(DATASETS)
    assert [row["title"] for row in rows] == [about.title for about in DATASETS.values()]
    by_key = {row["dataset"]: row for row in rows}
    mvtec, visa, elpv = (by_key[key] for key in ("mvtec_ad", "visa", "elpv"))
    assert (mvtec["test normal"], mvtec["test anomalous"], mvtec["state"]) == ("4", "6", "prepared")
    assert (mvtec["categories"], mvtec["license"]) == ("2", "CC BY-NC-SA 4.0")
    assert (visa["test normal"], visa["published test normal"]) == ("", "962")
    assert (visa["categories"], visa["download"], visa["state"]) == (
        "12",
        "automatic",
        "not prepared",
    )
    assert elpv["levels"] == "image"
    assert by_key["headct"]["domain"] == "medical"
    assert by_key["synthetic_aux"]["test anomalous"] == "128"
    plain = run("list")[1].splitlines()
    assert lines_with("\n".join(plain), "visa", "–", "962 / 1200", "image, pixel")
    assert max(map(len, plain)) <= 100
    assert run("list", "--format", "markdown")[1].startswith("| dataset | title | domain |")


def test_list_shows_counts_of_categories(run, official):
    run("prepare", "elpv", "--source", official)
    code, out, _ = run("list", "--categories", "elpv", "visa", "--format", "markdown")
    assert code == 0
    assert out.splitlines()[0] == (
        "| dataset | category | train | published train | test | published test |"
    )
    assert "| elpv | elpv | 3 / 0 | 1131 / 0 | 2 / 2 | 377 / 715 |" in out.splitlines()
    assert "| visa | candle | – | 900 / 0 | – | 100 / 100 |" in out.splitlines()
    assert "| visa | all | – | 8659 / 0 | – | 962 / 1200 |" in out.splitlines()
    everything = run("list", "--categories", "--format", "csv")[1]
    keys = {row["dataset"] for row in csv.DictReader(io.StringIO(everything))}
    assert keys == set(DATASETS)


def test_show_draws_reproducible_sheet(run, official, tmp_path):
    run("prepare", "mvtec_ad", "--source", official)
    path = tmp_path / "sheet.png"
    code, out, _ = run("show", "mvtec_ad", "--out", path, "--images", "4")
    assert code == 0
    assert out.strip() == f"Wrote 8 images of MVTec AD to {path}."
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    assert (pixels == OUTLINE).all(-1).any()
    first = path.read_bytes()
    run("show", "mvtec_ad", "--out", path, "--images", "4")
    assert path.read_bytes() == first
    assert run("show", "mvtec_ad", "--out", path, "--category", "metal_nut")[1].startswith(
        "Wrote 5 "
    )
    assert run("show", "mvtec_ad", "--out", path, "--split", "train")[1].startswith(
        "Wrote 6 images"
    )
    assert sorted(one.name for one in tmp_path.iterdir()) == ["data", "official", path.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--category", "botle"), "no category 'botle' in its test split. Did you mean bottle?"),
        (("--split", "val"), "has no split 'val'. Available: train, test"),
        (("--out", "."), "is a folder. Give the path of a PNG file"),
    ],
)
def test_show_rejects_mistakes(run, official, arguments, words):
    run("prepare", "mvtec_ad", "--source", official)
    code, _, err = run("show", "mvtec_ad", *arguments)
    assert code == 2
    assert words in err
