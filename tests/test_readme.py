"""README.md and the pages under docs/ name only what exists."""

import importlib.util
import pathlib
import re
import runpy
import shlex
import tomllib

import numpy as np
import pytest
from PIL import Image

from zsad_jax import data, methods
from zsad_jax.backbones import registry
from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.facts import DATASETS as FACTS
from zsad_jax.methods.shared import prompt_files
from zsad_jax.report.published import published_numbers
from zsad_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
DATASETS = PAGES["datasets.md"]
TEXT = README + "".join(PAGES.values())
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.strip() for line in TEXT.splitlines() if re.match(r"    (python|pip|pytest) ?", line)
]
INLINE = [words.replace("\n", " ") for words in re.findall(r"`([^`]+)`", TEXT)]
METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_aupro", "pixel_f1max")


def load_config(path, variant=""):
    return runpy.run_path(str(ROOT / path))["get_config"](variant)


def test_configs_exist_with_their_variants():
    named = set(re.findall(r"(configs/[\w/]+\.py)(?::(\w+))?", TEXT))
    assert ("configs/tipsomaly.py", "demo") in named
    for path, variant in named:
        assert load_config(path, variant).targets


def test_config_keys_exist():
    """Every key is one of the config that its line names, or of TIPSomaly's."""
    seen = set()
    for line in TEXT.splitlines():
        path = re.search(r"configs/[\w/]+\.py", line)
        config = load_config(path[0] if path else "configs/tipsomaly.py")
        for key in re.findall(r"--config\.([\w.]+)", line):
            value = config
            for part in key.split("."):
                assert part in value, f"config.{key}"
                value = value[part]
            seen.add(key)
    assert {"method.sigma", "method.dap_select"} <= seen


def test_paths_exist():
    named = re.findall(r"\b(?:zsad_jax|configs|tests|scripts|docs|\.ci)/[\w./-]*\w", TEXT)
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


def test_modules_exist():
    modules = set(re.findall(r"python -m ([\w.]+)", TEXT))
    commands = ("main", "predict", "data", "report", "backbones")
    assert modules == {f"zsad_jax.{command}" for command in commands}
    assert all(importlib.util.find_spec(module) for module in modules)


def test_drawing_shows_the_parts_in_order():
    drawing = README.partition("## Architecture")[2].partition("A part imports")[0]
    found = re.findall(r"^ {6}(\w+)/|(\w+)\.py", drawing, re.MULTILINE)
    parts = [folder or module for folder, module in found]
    assert parts[:5] == ["utils", "metrics", "data", "backbones", "methods"]
    assert parts[5:] == [
        *("train", "evaluate", "detector", "report", "experiment", "predict", "main")
    ]
    package = ROOT / "zsad_jax"
    folders = {path.name for path in package.rglob("*") if path.is_dir()}
    assert set(re.findall(r"(\w+)/", drawing)) <= folders | {"zsad_jax"}


def test_the_contract_is_the_contract():
    functions = re.findall(r"^    (\w+)\(.*\) -> ", PAGES["architecture.md"], re.MULTILINE)
    assert len(functions) == 8
    assert set(functions) <= set(methods.Method._fields)


def test_options_exist():
    sources = {
        "zsad_jax.main": "zsad_jax/main.py",
        "zsad_jax.predict": "zsad_jax/predict/__main__.py",
        "zsad_jax.data": "zsad_jax/data/__main__.py",
        "zsad_jax.report": "zsad_jax/report/__main__.py",
        "zsad_jax.backbones": "zsad_jax/backbones/__main__.py",
    }
    checked = 0
    for command in [*COMMANDS, *INLINE]:
        used = [source for name, source in sources.items() if f"{name} " in f"{command} "]
        if not used and command.startswith("--") and not command.startswith("--config"):
            used = [sources["zsad_jax.main"], sources["zsad_jax.predict"]]
        text = "".join((ROOT / source).read_text(encoding="utf-8") for source in used)
        for option in re.findall(r"(?:^| )--(\w+)(?![\w.])", command) if used else ():
            assert option in ("config", "help") or f'"{option}"' in text or f'"--{option}"' in text
            checked += 1
    assert checked > 10


def test_links_exist():
    for source, text in {"README.md": README, **{f"docs/{k}": v for k, v in PAGES.items()}}.items():
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            page = (ROOT / source).parent / path
            assert page.exists(), (source, target)
            headings = (
                re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE) if anchor else []
            )
            assert not anchor or anchor in {head.lower().replace(" ", "-") for head in headings}


def test_commands_can_be_typed():
    assert len(COMMANDS) > 8
    assert all(shlex.split(command) for command in COMMANDS)


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = set(re.findall(r'"\.\[(\w+)\]"', TEXT)) | {
        "cuda12",
        "cuda13",
        "tpu",
        "parity",
    }
    assert named <= set(extras)
    assert all(f"`{name}`" in TEXT or f"[{name}]" in README for name in named)


def test_continuous_integration_ends_with_the_test_command():
    command = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]
    assert command in COMMANDS


def test_names_are_known():
    named = set(re.findall(r"\b(?:tips(?:v2)?|clip)-[a-z0-9-]+", README))
    assert named
    assert named <= set(registry.RELEASES)
    assert set(re.findall(r"tipsomaly-l14-hr[\w-]+", README)) <= set(prompt_files.RELEASES)
    for name in re.findall(r"data prepare (\w+)", TEXT):
        with pytest.raises(UserError, match=f"prepare {name}"):
            data.check_available(name, ROOT / "nowhere")


def test_the_table_of_benchmarks_is_that_of_the_builders():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", DATASETS, re.MULTILINE)
    assert [name for name, _ in rows] == [name for name in FACTS if name in benchmarks.names()]
    assert f"{len(rows)} benchmarks" in README
    for name, cells in rows:
        facts = FACTS[name]
        title, counts, levels, how, license = cells.split(" | ")
        assert title == f"[{facts.title}]({facts.homepage})"
        assert counts == ("{:,} / {:,}".format(*facts.published) if facts.published else "–")
        assert levels == " and ".join(facts.levels)
        manual = f"manual download ({facts.terms})"
        assert how == ("automatic download" if facts.open_to_all else manual)
        assert license == facts.license


def test_the_papers_numbers():
    rows = dict(re.findall(r"^\| ([\w ]+), the paper \|(.*)\|$", README, re.MULTILINE))
    assert set(rows) == {"MVTec AD", "VisA"}
    for title, cells in rows.items():
        numbers = published_numbers("tipsomaly", title.lower().replace(" ", "_"))
        shown = [float(cell) for cell in cells.split("|")]
        assert shown == [numbers[metric].percent for metric in METRICS]


def test_the_code_compiles():
    assert len(PYTHON_BLOCKS) >= 2
    for block in PYTHON_BLOCKS:
        compile(block, "README.md", "exec")


def test_the_first_code_runs(tmp_path, monkeypatch, capsys):
    if registry.missing_files("tips-nano"):
        pytest.skip("the demo backbone is not there")
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'"(\w+\.png)"', PYTHON_BLOCKS[0]):
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(noise).save(name)
    scope = {}
    exec(compile(PYTHON_BLOCKS[0], "README.md", "exec"), scope)
    size = scope["detector"].backbone.preprocess.image_size
    assert scope["score"].shape == (2,)
    assert scope["anomaly_map"].shape == (2, size, size)
    assert capsys.readouterr().out
