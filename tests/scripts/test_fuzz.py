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


def test_limits_memory(monkeypatch, capsys):
    peaks = iter([4, 4, 4, 5])
    monkeypatch.setattr(runner, "_peak_mib", lambda: next(peaks))
    assert runner.run_cases([], memory_mib=1) == 0  # reached before
    assert runner.run_cases([], memory_mib=1) == 1
    assert "the peak of 5 MiB is above 1 MiB" in capsys.readouterr().out


def test_damaged_checkpoints_are_loaded_or_rejected(capsys):
    code = importlib.import_module("checkpoints").main(["--count", "45", "--seed", "1"])
    assert code == 0, capsys.readouterr().out


@pytest.mark.slow
def test_accounts_for_damaged_images(user_environment):
    command = [sys.executable, "scripts/fuzz/images.py", "--count", "120", "--seed", "3"]
    done = subprocess.run(
        command, cwd=ROOT, env=user_environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_command_lines_end_without_traceback(capsys):
    command_lines = importlib.import_module("command_lines")
    assert command_lines.main(["--count", "15", "--seed", "5"]) == 0, capsys.readouterr().out


def test_accepts_no_wrong_bytes_of_a_server(monkeypatch):
    server = importlib.import_module("server")
    for name in ("SECONDS_BETWEEN_ATTEMPTS", "TIMEOUT_SECONDS"):  # restored after the test
        monkeypatch.setattr(server.downloads, name, getattr(server.downloads, name))
    assert server.main(["--count", "25", "--seed", "4"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("script", ["state_files.py --count 20", "kills.py --count 4"])
def test_resumes_from_what_is_left(user_environment, script):
    done = subprocess.run(
        [sys.executable, *f"scripts/fuzz/{script}".split()],
        cwd=ROOT, env=user_environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
