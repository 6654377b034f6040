"""Tests of the included configs: found from any directory, and listed."""

import subprocess
import sys

import pytest
from absl import flags

from zsad_jax.experiment import config_files, config_flag
from zsad_jax.experiment.config_files import find_config
from zsad_jax.utils.errors import UserError


def test_finds_included_file_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/tps.py", "configs/protocols/tps.py"):
        path = config_files.included()[name]
        assert path.is_absolute()
        assert find_config(f"./{name}") == str(path)
        assert find_config(f"{name}:nano") == f"{path}:nano"


def test_prefers_local_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tps.py").touch()
    assert find_config("configs/tps.py:mine") == "configs/tps.py:mine"
    assert find_config("configs/clip.py") == str(config_files.included()["configs/clip.py"])


@pytest.mark.parametrize("name", ["configs/tipsomali.py:demo", "tipsomaly.py"])
def test_suggests_included_file(name):
    with pytest.raises(UserError, match=r"does not exist. Did you mean configs/tipsomaly\.py"):
        find_config(name)


def test_flag_loads_included_file_and_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["main", "--config=configs/clip.py:demo", "--config.seed=5"]
    values = flags.FlagValues()
    holder = config_flag.define(flag_values=values, sys_argv=argv)
    values(argv)
    assert (holder.value.backbone.name, holder.value.seed) == ("clip-nano", 5)
    assert values["config"].config_filename == "configs/clip.py:demo"


@pytest.mark.parametrize("module", ["main", "predict"])
def test_help_mentions_the_list(module):
    command = [sys.executable, "-m", f"zsad_jax.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert config_files.LIST_COMMAND in " ".join(done.stdout.split())


def test_lists_every_config(tmp_path):
    command = [sys.executable, "-m", "zsad_jax.main", "--list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows == config_files.describe_configs()
    assert {"configs/tps.py", "configs/tps.py:demo", "configs/protocols/tps.py:nano"} <= set(rows)
