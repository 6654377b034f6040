"""Fuzz test that damages the files from which commands resume, and runs the commands again.

    python scripts/fuzz/state_files.py --count 200 --seed 0

Damaged files of a training, an evaluation, a prediction or a prepared dataset are computed again, with the same
results, or end the command with an error that names them.
"""

import contextlib
import functools
import json
import os
import pathlib
import runpy
import shutil
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging
from kills import read_outputs, write_inputs
from ml_collections import ConfigDict
from runner import Case, WrongError, make_parser, run_cases

from zsad_jax.data import open_dataset
from zsad_jax.data.__main__ import main as data_command
from zsad_jax.experiment import config as experiment_config
from zsad_jax.experiment import run as experiment_run
from zsad_jax.experiment.config_files import find_config
from zsad_jax.predict import run as predict_run
from zsad_jax.predict import score as predict_score
from zsad_jax.predict.thresholds import Threshold
from zsad_jax.report.__main__ import main as report_command
from zsad_jax.utils import files

NOTICED = ("cut", "empty", "missing", "text", "nested")  # kinds of damage
VALUES = (None, True, -1, 10**400, 1.5, "", "../x", [], [[]], {}, {"a": 1})


def damage(rng: np.random.Generator, path: pathlib.Path) -> str:
    """Damages a file; returns how."""
    content = path.read_bytes()
    kinds = (*NOTICED, "flip", "zeros", "noise")
    kind = kinds[rng.integers(len(kinds))]
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.6:
        kind = "value"
    changed = bytearray(content)
    at = int(rng.integers(max(len(content), 1)))
    match kind:
        case "flip":
            for _ in range(rng.integers(1, 4)):
                if changed:
                    changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        case "cut":
            del changed[at:]
        case "zeros":
            changed[at : at + 64] = bytes(len(changed[at : at + 64]))
        case "noise":
            changed[at : at + 64] = rng.bytes(len(changed[at : at + 64]))
        case "empty":
            changed.clear()
        case "text":
            changed[:] = b"<html>\xff</html>\n"
        case "nested":
            changed[:] = b"[" * 50_000 + b"\n"
        case "value":
            lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
            number = int(rng.integers(len(lines)))
            lines[number] = json.dumps(replace_value(rng, json.loads(lines[number])))
            changed[:] = ("\n".join(lines) + "\n").encode()
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(changed)
    return kind


def replace_value(rng: np.random.Generator, tree: Any) -> Any:
    """Returns a copy of JSON data in which a random value is replaced or removed."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return VALUES[rng.integers(len(VALUES))]
    keys = [*tree] if isinstance(tree, dict) else [*range(len(tree))]
    key = keys[rng.integers(len(keys))]
    changed = tree.copy()
    if rng.random() < 0.2:
        del changed[key]
    else:
        changed[key] = replace_value(rng, tree[key])
    return changed


def small_config() -> ConfigDict:
    config = runpy.run_path(find_config("configs/tipsomaly.py"))["get_config"]("demo")
    config.backbone.image_size, config.batch_size = 56, 4
    return config


def run_main() -> bytes:
    """Trains and evaluates, in the working directory; returns the results."""
    config = small_config()
    config.comparisons, config.auxiliary, config.data_dir = None, "sd_saliency_900", "data"
    config.training.epochs, config.training.batch_size = 3, 4
    config.data = {"folder": "images", "name": "mpdd"}
    workdir = pathlib.Path("run")
    with files.alone(workdir, experiment_run.OUTPUTS):
        experiment_run.run_experiment(experiment_config.from_config(config), workdir)
    return pathlib.Path("run/results.json").read_bytes()


def resume_training() -> bytes:
    """Trains again from the last checkpoint, then evaluates."""
    for path in pathlib.Path("run/training").glob("*/prompts.npz"):
        path.unlink()
    return run_main()


def run_predict() -> bytes:
    options = predict_score.Options(
        paths=["images/part/test/hole"],
        out=pathlib.Path("out"),
        threshold=Threshold(good="images/part/test/good", quantile=0.9),
        pixel_threshold=0.5,
    )
    predict_run.predict(experiment_config.from_config(small_config()), options)
    return repr(read_outputs(pathlib.Path("out"))).encode()


def read_prepared() -> bytes:
    dataset = open_dataset("sd_saliency_900", "data")
    return repr([dataset[number] for number in range(len(dataset))]).encode()


def show_report() -> bytes:
    report_command(["run"])
    return b""


# What is damaged, and what is run then.
TARGETS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "checkpoint": ("run/training/*/checkpoints/3/**/*", resume_training),
    "both checkpoints": ("run/training/*/checkpoints/*/**/*", resume_training),
    "training": ("run/training/*/*.*", run_main),
    "evaluation": ("run/evaluations/*", run_main),
    "working directory": ("run/*.json", run_main),
    "figures": ("run/figures/.written.json", run_main),
    "report": ("run/*.json", show_report),
    "prediction": ("out/*.json*", run_predict),
    "raw maps": ("out/raw_maps/*", run_predict),
    "prepared": ("data/sd_saliency_900/1.0.0/*", read_prepared),
}


def run_case(state: pathlib.Path, kind: str, expected: bytes, seed: int) -> None:
    """Restores the working directory, damages some of its files, and runs the command again."""
    rng = np.random.default_rng(seed)
    pattern, act = TARGETS[kind]
    folder = pathlib.Path.cwd()
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(state, folder, dirs_exist_ok=True)
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    changed = rng.choice(found, size=min(int(rng.integers(1, 4)), len(found)), replace=False)
    done = {str(path.relative_to(folder)): damage(rng, path) for path in changed}
    try:
        # Outputs of `predict` have no checksums: other values of the right form are accepted.
        if act() != expected and (act is not run_predict or {*done.values()} <= {*NOTICED}):
            raise WrongError("other results")
    except Exception as error:
        raise type(error)(f"{error} {done}") from error


def draw_cases(place: pathlib.Path, kinds: list[str], count: int, seed: int) -> Iterator[Case]:
    """Makes the state, then yields cases of each kind in turn."""
    folder, state = place / "work", place / "state"
    folder.mkdir()
    os.chdir(folder)
    write_inputs(folder)
    prepare = ["prepare", "sd_saliency_900", "--source", "images.tar", "--data_dir", "data"]
    data_command(prepare)
    expected = {act: act() for act in (run_main, run_predict, read_prepared, show_report)}
    expected[resume_training] = expected[run_main]
    shutil.copytree(folder, state)
    for position in range(count):
        kind = kinds[position % len(kinds)]
        of_case = 1000 * seed + position
        act = functools.partial(run_case, state, kind, expected[TARGETS[kind][1]], of_case)
        yield Case(kind, f"seed {of_case}", act)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__, 200, "damaged states")
    parser.add_argument(
        "--kind", choices=TARGETS, nargs="+", default=[*TARGETS], help="what is damaged"
    )
    options = parser.parse_args(arguments)
    # The backbones are loaded once.
    load = functools.cache(experiment_config.load_backbone)
    with (
        tempfile.TemporaryDirectory() as place,
        contextlib.chdir(place),
        unittest.mock.patch.object(experiment_config, "load_backbone", load),
    ):
        logging.set_verbosity(logging.ERROR)
        cases = draw_cases(pathlib.Path(place), options.kind, options.count, options.seed)
        return run_cases(cases, seconds=120)


if __name__ == "__main__":
    sys.exit(main())
