"""Tests that the README's table is that of the stored runs, and that those are of today's demos."""

import json
import pathlib
import re
import runpy

import pytest

from zsad_jax.experiment.config import from_config, to_json
from zsad_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "update_demo_table.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = json.loads(SCRIPT["STORED"].read_text(encoding="utf-8"))


def test_table_shows_the_stored_runs():
    assert SCRIPT["fill_in"](README, RUNS) == README
    stale = {name: run | {"means": {key: {} for key in run["means"]}} for name, run in RUNS.items()}
    with pytest.raises(KeyError):  # every row is written from the runs
        SCRIPT["fill_in"](README, stale)
    rows = [
        (row["method"], row["label"]) for row in re.finditer(SCRIPT["ROW"], README, re.MULTILINE)
    ]
    compared = [(None, None), ("knn", "subspace"), ("musc", "4-shot"), ("winclip", "4-shot")]
    assert {*rows} == {*((name, None) for name in METHODS), *compared}


@pytest.mark.parametrize("backbone", SCRIPT["BACKBONES"])
@pytest.mark.parametrize("method", METHODS)
def test_stored_runs_have_the_setting_of_the_demos(method, backbone):
    file = runpy.run_path(str(ROOT / "configs" / f"{method}.py"))
    demos = [file["get_config"](variant) for variant in file["VARIANTS"] if "demo" in variant]
    (demo,) = (config for config in demos if config.backbone.name == backbone)
    setting = SCRIPT["setting_of"](to_json(from_config(demo)))
    assert RUNS[f"{method} on {backbone}"]["setting"] == setting


def test_condenses_a_run(tmp_path):
    mean = {"category": "mean", "method": "clip", "variant": "k=2", "backbone": "tips-nano"}
    values = {"image_auroc": 0.75, "pixel_auroc": 0.5, "pixel_auroc_std": 0.1}
    rows = [mean | values | {"image_score": name, "seeds": 3} for name in "ab"]
    config = {"method": "clip", "backbone": {"name": "tips-nano", "text": None}}
    contents = {
        "config": config | {"data_dir": "x"},
        "results": [rows[0] | {"category": "gear"}, rows[0]],
        "comparisons": [
            *(row | {"variant": "4-shot"} for row in rows),
            rows[0] | {"variant": "other", "method": "tps"},
        ],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert SCRIPT["condense"](tmp_path) == {
        "clip on tips-nano": {
            "setting": SCRIPT["setting_of"](config | {"backbone": {"name": "tips-nano"}}),
            "means": {"4-shot": values, "": values},
        }
    }
