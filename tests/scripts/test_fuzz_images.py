"""A short run of the fuzz test."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_accounts_for_damaged_files(user_environment):
    command = [sys.executable, "scripts/fuzz_images.py", "--count", "120", "--seed", "3"]
    done = subprocess.run(
        command, cwd=ROOT, env=user_environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "0 problems"
