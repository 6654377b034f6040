import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies

from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError


def test_writes_names_that_are_not_valid_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    files.write_json(tmp_path / "run.json", {"path": name, "plain": "é"})
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"path": name, "plain": "é"}


def test_folder_is_locked_by_one_process(tmp_path):
    folder = tmp_path / "new" / "folder"
    try_it = f"from zsad_jax.utils import files\nwith files.alone({str(folder)!r}): pass"
    with files.alone(folder):
        other = subprocess.run([sys.executable, "-c", try_it], capture_output=True, text=True)
        assert f"{folder} is in use by another process. Wait for it" in other.stderr
    assert subprocess.run([sys.executable, "-c", try_it]).returncode == 0
    with files.alone(folder), pytest.raises(UserError, match="in use"), files.alone(folder):
        pass


def test_reports_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"), files.alone(tmp_path / "file"):
        pass


HOSTILE = [
    "",
    ".",
    "..",
    "../../victim",
    "/victim",
    "a/b",
    "a\\b",
    "~",
    ".hidden",
    "a\0b",
    "a\nb",
    "x" * 300,
    "é",
    "COM1:",
]


@hypothesis.given(strategies.text() | strategies.sampled_from(HOSTILE))
def test_safe_name_is_one_path_component(text):
    name = files.safe_name(text)
    assert name
    assert not set(name) & set("/\\\0:")
    assert not name.startswith(".")
    assert len(name) < 120


@hypothesis.given(strategies.text(), strategies.text())
def test_safe_names_of_different_texts_differ(first, second):
    assert (files.safe_name(first) == files.safe_name(second)) == (first == second)


def test_removes_only_marked_files(tmp_path):
    ours, link, mine = tmp_path / "ours", tmp_path / "link", tmp_path / "mine"
    for folder in (ours, mine):
        files.make_removable(folder)
        (folder / "file.txt").touch()
    (ours / "elsewhere").symlink_to(mine, target_is_directory=True)
    link.symlink_to(mine, target_is_directory=True)
    files.remove(ours)
    assert not ours.exists()
    with pytest.raises(UserError, match="link was not created by zsad_jax"):
        files.remove(link)
    (mine / files.MARK).unlink()
    with pytest.raises(UserError, match="mine was not created by zsad_jax"):
        files.remove(mine)
    assert (mine / "file.txt").exists()
    files.remove(tmp_path / "gone")


def test_rejects_folder_with_files_of_the_user(tmp_path):
    (tmp_path / "results.csv").write_text("mine")
    words = r"contains 'results\.csv', which was not written by zsad_jax"
    outputs = ("run.json", "results.csv")
    with pytest.raises(UserError, match=words), files.alone(tmp_path, outputs):
        pass
    assert os.listdir(tmp_path) == ["results.csv"]
    with files.alone(tmp_path / "new", ("results.csv",)):
        (tmp_path / "new/results.csv").touch()
    with files.alone(tmp_path / "new", ("results.csv",)):  # now marked as its own
        pass


def test_next_run_removes_temporary_files_of_killed_ones(tmp_path):
    kept = ["mine.part", ".mine.part.png", "other/.results.0123abc_.part.json", "figures/a.png"]
    swept = [".results.0123abc_.part.json", "figures/mvtec_ad/.a b.0123abc_.part.png"]
    for name in kept + swept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with files.replaced(tmp_path / "new.npz") as temporary:
        assert files._TEMPORARY.fullmatch(temporary.name)
    (tmp_path / "link").symlink_to("other", target_is_directory=True)
    (tmp_path / files.LOCK).touch()
    with files.alone(tmp_path, ("figures", "link", "missing")):
        left = {str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one.is_file()}
    assert left == {*kept, files.LOCK, "new.npz"}


def test_removal_that_was_killed_can_be_repeated(tmp_path, monkeypatch):
    files.make_removable(tmp_path / "incomplete.extracted")
    (tmp_path / "incomplete.extracted/data").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
    files.remove(tmp_path / "incomplete.extracted")
    assert files.is_removable(tmp_path / "incomplete.extracted")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("6400 requested and 0 written"), "No space left on device"),
        (OSError(errno.ENOSPC, "full"), "No space left on device"),
        (OSError(errno.EFBIG, "big"), "File too large"),
    ],
)
def test_write_errors_name_the_file(tmp_path, error, words):
    with (
        pytest.raises(OSError, match=f"{words}.*new.json") as caught,
        files.replaced(tmp_path / "new.json"),
    ):
        raise error
    assert caught.value.filename == str(tmp_path / "new.json")
    assert os.listdir(tmp_path) == []


def test_user_path_expands_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.user_path("~/results") == "/home/someone/results"
    assert files.user_path(pathlib.Path("~")) == "/home/someone"
    assert files.user_path("./a~b") == "./a~b"


@pytest.mark.parametrize("path", ["", " ", "a\0b", None, 5, ("a",)])
def test_user_path_rejects_what_is_not_a_path(path):
    with pytest.raises(
        UserError, match=re.escape(f"--out is {path!r}. Expected a file or a folder")
    ):
        files.user_path(path, "--out")


@pytest.mark.parametrize("is_new", [True, False])
def test_new_folder_without_outputs_is_removed(tmp_path, is_new):
    folder = tmp_path / "run"
    if not is_new:
        folder.mkdir()
    with files.alone(folder):
        pass
    assert folder.exists() is not is_new
    with files.alone(folder):
        (folder / "results.json").touch()
    assert (folder / "results.json").exists()
