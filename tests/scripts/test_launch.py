"""Tests of the scripts that start a run on several machines, with stand-ins for the commands of the cloud."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# Runs the command for the hosts here, in the home directory.
GCLOUD = """#!/bin/bash
cd "$HOME"
for argument; do [[ $argument == --command=* ]] && exec bash -c "${argument#--command=}"; done
"""


def test_tpu_hosts_run_the_copied_repository(tmp_path):
    commands, home = tmp_path / "bin", tmp_path / "home"
    commands.mkdir()
    home.mkdir()
    (home / "zsad_jax").symlink_to(ROOT)
    python = f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'
    for name, script in (("gcloud", GCLOUD), ("python3", python)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), os.environ["PATH"]])
    # Another folder of the package's name would hide an installed one.
    environment = os.environ | {"PATH": path, "HOME": str(home)}
    environment.pop("PYTHONPATH", None)
    run = [
        ROOT / "scripts/launch_tpu_pod.sh",
        "pod",
        "zone",
        "--config",
        "configs/tipsomaly.py:demo",
        "--keys",
    ]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "--config.distributed" in found.stdout
