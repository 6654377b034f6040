"""Tests of working directories, which hold the results of one setting."""

import dataclasses
import json
import pathlib
import re

import pytest

from zsad_jax.experiment.config import Experiment, to_json
from zsad_jax.experiment.workdir import check_workdir
from zsad_jax.utils.errors import UserError

BASE = Experiment(
    method={"name": "clip", "sigma": 4.0},
    backbone={"name": "clip-nano"},
    targets=("synthetic_target",),
    comparisons={"K=0.5": {"sigma": 0.5}},
    exact_metrics=True,
)


@pytest.fixture
def workdir(tmp_path):
    """Returns a working directory with results."""
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_json(BASE)))
    (folder / "results.json").write_text("[]")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "batch_size": 4,
            "num_workers": 2,
            "data_dir": "data",
            "skip_missing": True,
            "model_devices": 2,
        },
        {"method": {"name": "clip", "sigma": 4, "temperature": None}},
    ],
)
def test_accepts_the_same_setting(workdir, changes):
    check_workdir(workdir, dataclasses.replace(BASE, **changes))


@pytest.mark.parametrize(
    ("changes", "words", "name"),
    [
        ({"method": {"name": "clip", "sigma": 8.0}}, "method.sigma: 4.0, now 8", "clip-sigma=8"),
        ({"seed": 5}, "seed: 0, now 5", "clip-seed=5"),
        ({"method": {"name": "clip", "sigma": 0.0}}, "method.sigma: 4.0, now 0.0", "clip-sigma=0"),
        ({"exact_metrics": False}, "exact_metrics: True, now False", "clip-exact_metrics=False"),
        ({"training": {"momentum": 0.0}}, "training.momentum: None, now 0.0", "clip-momentum=0"),
        (
            {"comparisons": {"K=0.5": {"sigma": 0.0}}},
            "comparisons.K=0.5.sigma: 0.5, now 0.0",
            "clip-sigma=0",
        ),
        (
            {"targets": ("visa",)},
            "targets: ['synthetic_target'], now ['visa']",
            "clip-targets=_visa",
        ),
        ({"comparisons": {}}, "comparisons.K=0.5.sigma: 0.5, now None", "clip-comparisons=None"),
    ],
)
def test_rejects_another_setting_and_suggests_a_directory(workdir, changes, words, name):
    other = dataclasses.replace(BASE, **changes)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        check_workdir(workdir, other)
    assert f"--workdir {workdir.with_name(name)}, or delete" in str(error.value)
    (workdir / "config.json").unlink()
    check_workdir(workdir, other)


@pytest.mark.parametrize("text", ["", "[]", "{", '"text"', "\0", "[" * 9999])
def test_rejects_results_with_an_unreadable_config(workdir, text):
    (workdir / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json cannot be read.*--workdir .*clip-new"):
        check_workdir(workdir, BASE)


def test_rejects_config_of_earlier_form(workdir):
    (workdir / "config.json").write_text(json.dumps({**to_json(BASE), "n_deep": 4}))
    with pytest.raises(UserError, match="n_deep: 4, now None"):
        check_workdir(workdir, BASE)


def test_accepts_directory_without_results(workdir):
    (workdir / "results.json").unlink()
    check_workdir(workdir, dataclasses.replace(BASE, seed=5))


@pytest.mark.parametrize(
    ("name", "suggested"), [("clip", "clip-seed=5"), ("c" * 200, "c" * 80 + "-seed=5")]
)
def test_suggests_a_directory_beside_any(workdir, monkeypatch, name, suggested):
    folder = workdir.rename(workdir.with_name(name))
    monkeypatch.chdir(folder)
    other = dataclasses.replace(BASE, seed=5)
    for place in (folder, pathlib.Path()):
        with pytest.raises(UserError, match=f"--workdir {folder.with_name(suggested)}, or delete"):
            check_workdir(place, other)
