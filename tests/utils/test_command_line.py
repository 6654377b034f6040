"""Tests of what all commands share: exit codes, and outputs that are closed or have few characters."""

import errno
import io
import os
import sys

import pytest

from zsad_jax.report.__main__ import main as report
from zsad_jax.utils.command_line import guarded


@pytest.mark.parametrize(
    "command",
    [
        lambda: guarded(lambda: print("a table")),
        lambda: guarded(lambda: print("more than a buffer holds" * 9999)),
        lambda: report(["--help"]),
    ],
)
def test_closed_output_ends_in_silence(command, monkeypatch, capfd):
    """Replaces stdout by a pipe whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert command() == 141
    assert capfd.readouterr().err == ""


def test_closed_pipe_of_others_is_an_error():
    def body():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        guarded(body)


def test_runs_without_output_and_error_stream(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert guarded(lambda: print("a table") or print("a line", file=sys.stderr)) == 0


def test_replaces_characters_that_an_output_does_not_have(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert guarded(lambda: print("0–1 \udce9")) == 0
    assert output.buffer.getvalue() == b"0?1 ?\n"


@pytest.mark.parametrize("argument", ["", " "])
def test_rejects_empty_paths(argument, capsys):
    with pytest.raises(SystemExit) as ended:
        report([argument])
    assert ended.value.code == 2
    assert "Expected a file or a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "runs/a.npz"), "The disk of runs/a.npz is full. Make room"),
        (OSError(errno.EACCES, "Permission denied", "runs/a"), "runs/a: Permission denied. Check"),
        # As orbax wraps it.
        (ValueError("RESOURCE_EXHAUSTED: No space left on device"), "The disk is full. Make room"),
    ],
)
def test_errors_of_the_system_are_one_line(error, words, capsys):
    def body():
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(body)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
