"""The runner of fuzz cases, and short runs of the fuzz tests."""

import importlib
import pathlib
import subprocess
import sys
import time

import pytest

from zsad_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts/fuzz"))
runner = importlib.import_module("runner")


def raises(error):
    def act():
        raise error

    return act


ACTS = {
    "accepted": [lambda: None, raises(SystemExit(0))],
    "rejected": [raises(UserError("not a number")), raises(SystemExit(2))],
    "wrong": [raises(runner.WrongError("executed"))],
    "traceback": [raises(RecursionError()), raises(SystemExit(1))],
    "hang": [lambda: time.sleep(60)],
}


@pytest.mark.parametrize("outcome", runner.OUTCOMES)
def test_counts_outcomes(outcome, capsys):
    cases = [runner.Case("a kind", str(number), act) for number, act in enumerate(ACTS[outcome])]
    code = runner.run_cases(cases, seconds=0.1, memory_mib=1 << 20)
    heads, row, *_, last = capsys.readouterr().out.splitlines()
    counts = dict(zip(heads.split()[1:], map(int, row.removeprefix("a kind").split()), strict=True))
    assert counts[outcome] == counts["cases"] == sum(counts.values()) / 2 == len(cases)
    faults = len(cases) * (outcome in runner.FAULTS)
    assert code == bool(faults)
    assert f"{faults} fault{'s' * (faults != 1)}, peak memory" in last


def test_limits_memory(capsys):
    assert runner.run_cases([], memory_mib=1) == 1
    assert "above 1 MiB" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "checkpoints.py --count 45 --seed 1",
        "command_lines.py --count 15 --seed 5",
        "server.py --count 25 --seed 4",
        "images.py --count 120 --seed 3",
        "state_files.py --count 20",
        "kills.py --count 7",
        "kills.py --command processes --signal SIGKILL --count 2",
    ],
)
def test_finds_no_fault(user_environment, script):
    """Runs the script in a process of its own, since it limits the peak memory of a process."""
    done = subprocess.run(
        [sys.executable, *f"scripts/fuzz/{script}".split()],
        cwd=ROOT, env=user_environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
