"""Benchmark of a grid of settings over stored features against one run of `main` for each of its points.

    python scripts/benchmark_grid.py --config configs/anomalyclip.py:demo
    git worktree add /some/where 42729cc
    python scripts/benchmark_grid.py --config configs/anomalyclip.py:demo --before /some/where

The first side is one command with `config.sweep`, the second one command for each point, with the code in
--before (default: this version, without stored features). Both start with an empty cache directory, and
compilation, training, evaluation and reports are included. The metrics of all points must agree. On a busy
machine, compare processor time.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from benchmark_sides import report

from zsad_jax.metrics import METRICS
from zsad_jax.utils import command_line
from zsad_jax.utils.errors import UserError

# Twelve points, each with other shapes of the learned parameters.
SWEEP = {"method.num_prompts": [4, 8, 12], "method.num_deep_prompts": [1, 2, 3, 4]}
TOLERANCE = 1e-4  # of metrics in [0, 1]
TREE = pathlib.Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/anomalyclip.py:demo")
    parser.add_argument("--sweep", type=json.loads, default=SWEEP, help="values by key, as JSON")
    keys = "KEY=VALUE of the config, for both sides"
    parser.add_argument("--set", nargs="*", default=["comparisons={}"], help=keys)
    parser.add_argument("--before", type=pathlib.Path, help="source tree of the second side")
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures both sides, and prints and writes the results."""
    every = itertools.product(*options.sweep.values())
    points = [dict(zip(options.sweep, values, strict=True)) for values in every]
    fixed = [f"--config.{one}" for one in options.set]
    single = [[*fixed, *(f"--config.{k}={v}" for k, v in point.items())] for point in points]
    if options.before is None:
        single = [[*arguments, "--config.features.cache=none"] for arguments in single]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sweep = [[*fixed, f"--config.sweep={options.sweep}"]]
        grid = run_commands(options, TREE, folder / "grid", sweep)
        runs = run_commands(options, options.before or TREE, folder / "runs", single)
        difference = compare(folder, points)
    rows = [
        {
            "side": side,
            "seconds": seconds,
            "cpu_seconds": processor,
            "time_ratio": seconds / runs[0],
            "cpu_ratio": processor / runs[1],
        }
        for side, (seconds, processor) in (("grid", grid), (f"{len(points)} runs", runs))
    ]
    report(options, rows, difference=difference)


def run_commands(
    options: argparse.Namespace,
    tree: pathlib.Path,
    folder: pathlib.Path,
    commands: Sequence[Sequence[str]],
) -> tuple[float, float]:
    """Runs commands one after another, and returns their wall and processor time in seconds.

    Each has a working directory in a numbered folder, since trainings in neighboring ones are reused.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    variables |= {"ZSAD_JAX_HOME": str(folder / "home"), "PYTHONPATH": str(tree.absolute())}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for number, arguments in enumerate(commands):
        workdir = folder / str(number) / "run"
        command = [sys.executable, "-m", "zsad_jax.main", "--config", options.config, *arguments]
        done = subprocess.run(
            [*command, "--workdir", str(workdir)],
            env=variables, cwd=tree, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - start, processor


def compare(folder: pathlib.Path, points: Sequence[Mapping[str, Any]]) -> float:
    """Returns the largest difference between metrics of the grid and of the runs, which must be small."""

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    labels = read("grid/0/run/run.json")["sweep"]["points"]
    of_grid, pairs = read("grid/0/run/comparisons.json"), []
    for label, point in labels.items():
        rows = read(f"runs/{points.index(point)}/run/results.json")
        found = [row for row in of_grid if row["variant"] == label]
        pairs += [(a[name], b[name]) for a, b in zip(found, rows, strict=True) for name in METRICS]
    mine, others = np.array([pair for pair in pairs if None not in pair]).T
    difference = float(np.abs(mine - others).max())
    if len(labels) != len(points) or not difference <= TOLERANCE:
        raise UserError(f"The metrics of the grid and of the runs differ by {difference:.1e}.")
    return difference


if __name__ == "__main__":
    sys.exit(main())
