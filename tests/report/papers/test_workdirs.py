import csv
import io
import json
import re

import pytest
from absl import logging

from zsad_jax.report import formats
from zsad_jax.report.compare import Deviation
from zsad_jax.report.papers import compare_run
from zsad_jax.report.papers.workdirs import columns_of, read_workdirs
from zsad_jax.report.rows import combine_seeds
from zsad_jax.utils.errors import UserError


def test_column_names_contain_the_differences(make_row):
    rows = [
        make_row("visa"),
        make_row("mpdd"),
        make_row("visa", backbone="tips-nano"),
        make_row("visa", variant="sigma=8"),
        make_row("visa", method="coop"),
    ]
    columns = columns_of(rows)
    assert [(one.name, one.setting) for one in columns] == [
        ("TIPSomaly (defaults, tips-l14-hr)", "tips-l14-hr"),
        ("TIPSomaly (defaults, tips-nano)", "tips-nano"),
        ("TIPSomaly (sigma=8, tips-l14-hr)", "tips-l14-hr, sigma=8"),
        ("CoOp", "clip-vit-l14-336"),
    ]
    assert set(columns[0].rows) == {("visa", "mean"), ("mpdd", "mean")}


def test_single_setting_is_named_after_its_method(make_row):
    rows = [make_row("visa", seed=1), make_row("mpdd", seed=2)]
    assert [one.name for one in columns_of(rows)] == ["TIPSomaly"]


def test_other_trainings_and_image_scores_are_separate_columns(make_row, make_workdir, caplog):
    brain = ("brainmri", "br35h")
    folders = [
        make_workdir("tps", [make_row(key, method="tps") for key in ("mvtec_ad", *brain)]),
        make_workdir("med", [make_row(key, method="tps", auxiliary="headct") for key in brain]),
        make_workdir("second", [make_row("br35h", method="tps", image_score="second")]),
    ]
    both = read_workdirs(folders[:2])
    assert [(one.name, one.setting, one.training) for one in both] == [
        (
            "TPS (trained on VisA or MVTec AD)",
            "clip-vit-l14-336, trained on VisA or MVTec AD",
            "common",
        ),
        (
            "TPS (trained on HeadCT)",
            "clip-vit-l14-336, trained on HeadCT",
            "tps_medical_image",
        ),
    ]
    assert [set(one.rows) for one in both] == [
        {("mvtec_ad", "mean"), ("brainmri", "mean"), ("br35h", "mean")},
        {("brainmri", "mean"), ("br35h", "mean")},
    ]
    assert [one.name for one in read_workdirs(folders[1:2])] == ["TPS (trained on HeadCT)"]
    assert [one.name for one in read_workdirs([folders[0], folders[2]])] == [
        "TPS (image score global)",
        "TPS (image score second)",
    ]
    assert not caplog.records


def test_missing_masks_come_from_the_run_that_is_shown(make_row, make_workdir):
    rows = [make_row("ksdd"), make_row("rsdds_113")]
    first, second = make_workdir("a", rows), make_workdir("b", rows[:1])
    counts = {"ksdd": 4, "rsdds_113": 53}
    (first / "run.json").write_text(json.dumps({"anomalous_without_mask": counts}))
    (ours,) = read_workdirs([first, second])
    words = "RSDDs-113: 53 of 113 anomalous images have no usable mask."
    assert ours.deviations == [Deviation("rsdds_113", "images", ("pixel",), words)]


def test_other_settings_come_from_the_run_that_is_shown(make_row, make_workdir):
    """Uses two runs that differ only in their epochs; one of them has results of both datasets."""
    rows = [make_row(key, method="tps", auxiliary="mvtec_ad") for key in ("visa", "btad")]
    first, second = make_workdir("a", rows), make_workdir("b", rows[:1])
    (first / "run.json").write_text(json.dumps({"unlike_paper": {"epochs": [1, 15]}}))
    (ours,) = read_workdirs([first, second])
    words = "TPS: epochs 1 (the paper: 15)."
    assert ours.deviations == [Deviation("btad", "setting", ("image", "pixel"), words)]


def test_later_results_replace_earlier_ones_with_a_warning(make_row, make_workdir, caplog):
    logging.set_verbosity(logging.INFO)
    logging.get_absl_logger().propagate = True
    first = make_workdir("a", [make_row("visa", image_ap=0.1), make_row("mpdd", image_ap=0.2)])
    second = make_workdir("b", [make_row("visa", image_ap=0.3)])
    (ours,) = read_workdirs([first, second])
    assert ours.rows["visa", "mean"]["image_ap"] == 0.3
    assert ours.rows["mpdd", "mean"]["image_ap"] == 0.2
    assert [record.getMessage() for record in caplog.records] == [
        f"Results of TIPSomaly on VisA in {second} replace those in {first}."
    ]


def test_comparisons_are_separate_columns_on_request(make_row, make_workdir, caplog):
    others = [
        make_row("visa", image_score="first"),
        make_row("visa", variant="fixed prompts", auxiliary=None, seed=None),
    ]
    folder = make_workdir("a", [make_row("visa")], others)
    assert [one.name for one in read_workdirs([folder])] == ["TIPSomaly"]
    assert [one.name for one in read_workdirs([folder], comparisons=True)] == [
        "TIPSomaly (defaults, image score second)",
        "TIPSomaly (defaults, image score first)",
        "TIPSomaly (fixed prompts, image score second)",
    ]
    assert not caplog.records


def seed_row(make_row, seed, value, dataset="visa", **fields):
    return make_row(dataset, seed=seed, checkpoint=f"x-{seed}", image_ap=value, **fields)


def test_combines_seeds_of_several_working_directories(make_row, make_workdir, caplog):
    """Checks directories of one seed and of several, and a seed that two of them have."""
    singles = [seed_row(make_row, seed, value) for seed, value in ((1, 0.1), (2, 0.2))]
    several = make_workdir("several", combine_seeds(singles), changed_keys={"sigma": 2})
    (several / "results_by_seed.json").write_text(json.dumps(singles))
    folders = [
        make_workdir(f"seed {seed}", [seed_row(make_row, seed, value)], changed_keys={"seed": seed})
        for seed, value in ((2, 0.4), (5, 0.7))
    ]
    (ours,) = read_workdirs([several, *folders])
    row = ours.rows["visa", "mean"]
    assert (row["seed"], row["seeds"], row["image_ap"]) == (1, 3, pytest.approx(0.4))
    assert row["image_ap_std"] == pytest.approx(0.3)  # of 0.1, 0.4 and 0.7
    assert ours.remark == "Changed in the config: sigma=2."
    assert ours.description.endswith(
        " · mean ± standard deviation over 3 seeds (1, 2, 5). Changed in the config: sigma=2."
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"Results of TIPSomaly on VisA in {folders[0]} replace those in {several}."
    ]


@pytest.mark.parametrize(
    ("fields", "run"), [({"epoch": 9}, {}), ({}, {"unlike_paper": {"learning_rate": [0.1, 0.001]}})]
)
def test_combines_only_seeds_of_the_same_setting(make_row, make_workdir, caplog, fields, run):
    folders = [
        make_workdir("a", [seed_row(make_row, 1, 0.1)]),
        make_workdir("b", [seed_row(make_row, 2, 0.3, **fields)], **run),
    ]
    (ours,) = read_workdirs(folders)
    assert ours.rows["visa", "mean"] == seed_row(make_row, 2, 0.3, **fields)
    assert "replace those in" in caplog.text


def test_several_seeds_without_their_single_rows_are_kept(make_row, make_workdir):
    rows = combine_seeds([seed_row(make_row, seed, 0.1) for seed in (1, 2)])
    (ours,) = read_workdirs([make_workdir("a", rows)])
    assert ours.rows["visa", "mean"] == rows[0]
    assert ours.description.endswith(" · mean ± standard deviation over 2 seeds (1, 2).")


def test_deviation_of_a_mean_over_datasets_is_of_the_means_of_seeds(make_row):
    values = {"headct": (0.1, 0.3), "brainmri": (0.3, 0.2), "br35h": (0.2, 0.7)}
    rows = [
        seed_row(make_row, seed, value, dataset, method="tps", image_auroc=value)
        for dataset, of in values.items()
        for seed, value in enumerate(of)
    ]
    tables = compare_run(combine_seeds(rows))
    table = next(table for table in tables if table.title.endswith("Image AUROC"))
    assert [line.cells[-1].number for line in table.lines] == [
        *("20.0 ± 14.1", "25.0 ± 7.1", "45.0 ± 35.4"),
        "30.0 ± 14.1",  # the means of the seeds are 20 and 40
    ]
    lines = list(csv.DictReader(io.StringIO(formats.to_csv([table]))))
    assert [line["std"] for line in lines if line["source"] == "ours"] == [
        *("14.1", "7.1", "35.4", "14.1")
    ]


def test_demonstration_is_described_as_such(make_row, make_workdir):
    folders = [
        make_workdir("a", [make_row("visa", backbone="tips-nano")], demonstration=True),
        make_workdir("b", [make_row("visa", backbone="tips-l14")]),
    ]
    shown, real = read_workdirs(folders)
    assert shown.description.startswith(
        "Ours, TIPSomaly (tips-nano): TIPSomaly · backbone tips-nano · "
    )
    assert shown.description.endswith(". Demo model, not for decisions.")
    assert shown.remark == "Demo model, not for decisions."
    assert real.remark == ""
    assert real.description.endswith(".")


def test_changed_keys_are_named(make_row, make_workdir):
    folders = [
        make_workdir("a", [make_row("visa")], changed_keys={"train": True}),
        make_workdir("b", [make_row("mpdd")], changed_keys={"seed": 5}),
    ]
    (ours,) = read_workdirs(folders)
    assert ours.remark == "Changed in the config: train=True. Changed in the config: seed=5."
    assert ours.description.endswith(f". {ours.remark}")


@pytest.mark.parametrize(
    "content",
    [b"[{", b"3", b"[3]", b"\xff", b'[{"dataset": "visa"}]', b'["visa"]'],
)
@pytest.mark.parametrize("name", ["results.json", "comparisons.json"])
def test_reports_broken_file(make_row, make_workdir, name, content):
    folder = make_workdir("a", [make_row("visa")], [])
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_workdirs([folder], comparisons=True)
    assert str(error.value).startswith(f"Cannot read {folder / name} (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda rows: rows[1].update(image_ap=93.4),
            "(row 2, 'mpdd', 'mean': image_ap is 93.4, expected",
        ),
        (lambda rows: rows[0].pop("image_ap"), "(row 1, 'visa', 'mean': missing columns image_ap)"),
        (lambda rows: rows[1].update(rows[0]), "(row 2, 'visa', 'mean': the row repeats row 1)"),
        (lambda rows: rows.append(3), "(expected a list of rows)"),
    ],
)
def test_names_row_and_column_of_edited_results(make_row, make_workdir, edit, words):
    rows = [make_row("visa"), make_row("mpdd")]
    edit(rows)
    folder = make_workdir("a", rows)
    with pytest.raises(UserError, match=re.escape(f"Cannot read {folder}/results.json {words}")):
        read_workdirs([folder])


@pytest.mark.parametrize(
    "run",
    [
        "[]",
        '{"anomalous_without_mask": 3}',
        '{"unlike_paper": {"naming": "x"}}',
        '{"unlike_paper": []}',
        '{"changed_keys": ["train"]}',
    ],
)
def test_rejects_edited_run(make_row, make_workdir, run):
    folder = make_workdir("a", [make_row("visa")])
    (folder / "run.json").write_text(run)
    with pytest.raises(UserError, match=re.escape(f"Cannot read {folder}/run.json (")):
        read_workdirs([folder])


@pytest.mark.parametrize("place", ["results.json", ".."])
def test_suggests_working_directory_near_a_path(make_row, make_workdir, place):
    folder = make_workdir("a", [make_row("visa")])
    with pytest.raises(UserError, match=re.escape("has no results.json. Did you mean ")) as error:
        read_workdirs([folder / place])
    assert str(error.value).endswith("a?")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_reports_folder_without_results(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} has no results.json"):
        read_workdirs([tmp_path / name])


def test_undefined_metric_may_be_nan(make_row, make_workdir):
    folder = make_workdir("a", [make_row("visa")])
    text = json.dumps([make_row("visa") | {"image_ap": float("nan")}])
    (folder / "results.json").write_text(text)
    assert read_workdirs([folder])[0].rows["visa", "mean"]["image_ap"] is None


def test_partial_results_are_detected_within_one_run(make_row, make_workdir):
    """Checks that rows of another run in between do not matter."""
    categories = (
        "bracket_black",
        "bracket_brown",
        "bracket_white",
        "connector",
        "metal_plate",
        "tubes",
    )
    rows = [make_row("mpdd", category) for category in (*categories, "mean")]
    first, second = make_workdir("a", rows), make_workdir("b", rows[2:3])
    (ours,) = read_workdirs([first, second])
    words = "MPDD: 5 of 6 categories were evaluated."
    assert ours.deviations == [Deviation("mpdd", "images", ("image", "pixel"), words)]
    (alone,) = columns_of(rows[:2] + rows[3:])
    assert alone.deviations == ours.deviations
