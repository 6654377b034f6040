import json
import os
import subprocess
import sys

import pytest

from zsad_jax import files
from zsad_jax.errors import UserError


def test_names_that_are_no_valid_text_can_be_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    files.write_json(tmp_path / "run.json", {"path": name, "plain": "é"})
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"path": name, "plain": "é"}


def test_a_folder_has_one_process_at_a_time(tmp_path):
    folder = tmp_path / "new" / "folder"
    try_it = f"from zsad_jax import files\nwith files.alone({str(folder)!r}): pass"
    with files.alone(folder):
        other = subprocess.run([sys.executable, "-c", try_it], capture_output=True, text=True)
        assert f"{folder} is in use by another process; wait for it" in other.stderr
    assert subprocess.run([sys.executable, "-c", try_it]).returncode == 0
    with files.alone(folder), pytest.raises(UserError, match="in use"), files.alone(folder):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"), files.alone(tmp_path / "file"):
        pass
