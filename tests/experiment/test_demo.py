"""Tests that the demo, run as in the README's quick start, detects anomalies."""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

from zsad_jax.experiment.config import from_config
from zsad_jax.experiment.run import run_experiment

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, user_environment):
    folder = tmp_path_factory.mktemp("demo")
    command = [
        sys.executable,
        "-m",
        "zsad_jax.main",
        "--config",
        str(ROOT / "configs/tipsomaly.py:demo"),
    ]
    done = subprocess.run(
        [*command, "--workdir", str(folder / "demo")],
        env=user_environment | {"ZSAD_JAX_HOME": str(folder / "home"), "JAX_PLATFORMS": "cpu"},
        cwd=folder, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "demo"


def mean_of(path, **wanted):
    rows = json.loads(path.read_text())
    return next(
        row
        for row in rows
        if row["category"] == "mean" and all(row[key] == value for key, value in wanted.items())
    )


def test_learned_prompts_detect_unseen_defects(workdir):
    mean = mean_of(workdir / "results.json")
    assert (mean["n_images"], mean["n_anomalous"]) == (256, 128)
    assert mean["image_auroc"] >= 0.85
    assert mean["pixel_auroc"] >= 0.90
    assert mean["pixel_aupro"] >= 0.70


def test_learned_prompts_are_better_than_fixed_ones(workdir):
    mean = mean_of(workdir / "results.json")
    fixed = mean_of(
        workdir / "comparisons.json", variant="fixed prompts", image_score=mean["image_score"]
    )
    # This margin requires masks: training with true masks gains 0.0185 to 0.0227 over eight seeds,
    # training with blank or permuted masks 0.0122 to 0.0125.
    assert mean["pixel_auroc"] >= fixed["pixel_auroc"] + 0.015


def test_all_outputs_state_that_it_is_a_demonstration(workdir):
    assert "not for decisions" in (workdir / "report.html").read_text()
    assert "not for decisions" in (workdir / "results.md").read_text()
    assert json.loads((workdir / "run.json").read_text())["demonstration"]


@pytest.mark.parametrize("backbone", ["tips-nano", "clip-nano"])
def test_bfloat16_towers_keep_auroc(tmp_path, backbone):
    config = runpy.run_path(str(ROOT / "configs/tipsomaly.py"))["get_config"]("demo")
    config.backbone.name, config.image_score = backbone, "first"
    config.method.learning, config.train = "none", False
    config.comparisons = {"bfloat16": {"backbone": {"dtype": "bfloat16"}}}
    run_experiment(from_config(config), tmp_path)
    exact = mean_of(tmp_path / "results.json")
    rounded = mean_of(tmp_path / "comparisons.json", variant="bfloat16", image_score="first")
    assert rounded["pixel_auroc"] != exact["pixel_auroc"]
    for metric in ("image_auroc", "pixel_auroc"):
        assert rounded[metric] == pytest.approx(exact[metric], abs=0.002)
