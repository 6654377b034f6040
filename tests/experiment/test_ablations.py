"""Tests of the papers' ablations and of the example in docs/ablations.md."""

import functools
import json
import pathlib
import re
import runpy

import numpy as np
import PIL.Image
import pytest

from zsad_jax.backbones import load_backbone
from zsad_jax.data.protocols import DOMAIN_MEANS
from zsad_jax.experiment.config import from_config
from zsad_jax.experiment.run import run_experiment
from zsad_jax.experiment.variants import make_variants
from zsad_jax.report.published import all_numbers

ROOT = pathlib.Path(__file__).parents[2]
PATHS = {path.stem: path for path in sorted((ROOT / "configs/ablations").glob("*.py"))}
PAGE = (ROOT / "docs/ablations.md").read_text(encoding="utf-8")
TABLES = {
    "vip2clip_modules": ("vip2clip", "4"),
    "vip2clip_alignment": ("vip2clip", "5"),
    "vip2clip_adjectives": ("vip2clip", "6"),
    "faprompt_modules": ("faprompt", "4"),
}


nano = functools.cache(load_backbone)


def read(name, variant=""):
    return from_config(runpy.run_path(str(PATHS[name]))["get_config"](variant))


@pytest.mark.parametrize("variant", ["", "demo"])
@pytest.mark.parametrize("name", PATHS)
def test_every_point_is_a_valid_setting(name, variant):
    experiment = read(name, variant)
    assert experiment.method["name"] == name.partition("_")[0]
    assert experiment.seeds == (3 if variant else 1)
    variants = make_variants(experiment)
    for one in variants:
        backbone = one.experiment.backbone["name"]
        assert backbone.endswith("-nano") == bool(variant)
        one.experiment.check_method(nano(backbone) if variant else None, main=not one.label)
    methods = [repr((one.experiment.method, one.experiment.backbone)) for one in variants[1:]]
    assert 0 < len(set(methods)) == len(methods)


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_those_of_the_papers_table(name):
    """The main row is the full model, whatever the table calls it."""
    settings = (
        number.setting.removeprefix("ablation: ")
        for number in all_numbers()
        if (number.paper, number.table) == TABLES[name] and not number.proposed
    )
    printed = [setting.partition(" (")[0] for setting in dict.fromkeys(settings)]
    assert list(read(name).comparisons) == printed


@pytest.mark.parametrize("table", ["4", "17", "18"])
def test_targets_are_those_of_the_papers_table(table):
    numbers = [one for one in all_numbers() if (one.paper, one.table) == ("faprompt", table)]
    targets = set(read("faprompt_modules").targets)
    assert {one.dataset for one in numbers} <= targets | {*DOMAIN_MEANS}
    assert "mvtec_ad" not in targets


def test_page_lists_every_ablation():
    rows = dict(re.findall(r"^\| `configs/ablations/(\w+)\.py` \| (.+) \|$", PAGE, re.MULTILINE))
    lines = {name: runpy.run_path(str(path))["VARIANTS"][""] for name, path in PATHS.items()}
    assert rows == lines


def write_images(root):
    """Writes the layout of a dataset: noise, and noise with a square."""
    entries, rng = [], np.random.default_rng(0)
    for number in range(4):
        image, mask = rng.integers(0, 99, (56, 56, 3), np.uint8), np.zeros((56, 56), np.uint8)
        mask[8:24, 8:24] = 255 * (number % 2)
        image[mask > 0] = 255
        root.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(root / f"{number}.png")
        PIL.Image.fromarray(mask).save(root / f"{number}_mask.png")
        files = {"img_path": f"{number}.png", "mask_path": f"{number}_mask.png" * (number % 2)}
        entries.append(
            files | {"cls_name": "plate", "specie_name": "square", "anomaly": number % 2}
        )
    (root / "meta.json").write_text(json.dumps({"train": {}, "test": {"plate": entries}}))


def run_tiny(config, folder):
    """Runs a demo on a few tiny images and returns its rows by variant, of the first image score."""
    for name in ("auxiliary", "target"):
        write_images(folder / "data" / name)
    config.targets, config.auxiliary = ("target",), "auxiliary"
    config.data_dir = str(folder / "data")
    config.backbone.image_size = 56
    config.training.epochs, config.seeds = 1, 2
    run_experiment(from_config(config), folder / "run")
    rows = json.loads((folder / "run" / "comparisons.json").read_text())
    return {row["variant"]: row for row in rows if row["category"] == "mean"}


def test_demo_runs(tmp_path):
    config = runpy.run_path(str(PATHS["tipsomaly_decoupled"]))["get_config"]("demo")
    rows = run_tiny(config, tmp_path)
    assert set(config.comparisons) <= set(rows)
    assert rows["learned prompts"]["seeds"] == 2
    assert "seeds" not in rows["fixed prompts"]  # nothing is trained


@pytest.mark.slow
def test_example_runs(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope = {}
    exec(compile(block, "docs/ablations.md", "exec"), scope)
    config = scope["get_config"]()
    rows = run_tiny(config, tmp_path)
    assert {*config.comparisons, "sigma=2, learning_rate=0.001"} <= set(rows)
