"""Training curves, as JSON lines and as TensorBoard events."""

import contextlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from absl import logging

from zsad_jax.utils.config import fits
from zsad_jax.utils.errors import plural
from zsad_jax.utils.files import PathLike, write_text
from zsad_jax.utils.records import parse_json

FILE_NAME = "curves.jsonl"
EVENTS_FOLDER = "tensorboard"


def _import_writer() -> Any:
    """Imports tensorboardX without PyTorch, which it imports where it can; that takes seconds."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("torch", None)
    try:
        from tensorboardX import SummaryWriter
    finally:
        if modules["torch"] is None:
            del modules["torch"]
    return SummaryWriter


class CurveWriter(contextlib.AbstractContextManager["CurveWriter"]):
    """Writes the training curve of a working directory, one step at a time; a context manager.

    Every line is handed to the system as it is written: a killed training loses at most a half-written
    last line, which the next start drops, as it does lines after `resume_step` (None: all lines).
    """

    def __init__(self, workdir: PathLike, resume_step: int | None = None):
        path, events = pathlib.Path(workdir) / FILE_NAME, pathlib.Path(workdir) / EVENTS_FOLDER
        kept = [] if resume_step is None else read_curves(workdir)
        # Later steps are trained again and would appear twice.
        kept = [line for line in kept if line["step"] <= (resume_step or 0)]
        write_text(path, "".join(map(_encode, kept)))
        if resume_step is None and events.is_dir():
            for file in events.glob("events.out.tfevents.*"):
                file.unlink()
        # Makes TensorBoard hide the events of those steps, which cannot be removed from its files.
        purge_step = None if resume_step is None else resume_step + 1
        self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._events = _import_writer()(os.fspath(events), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to every curve; steps count from 1, and non-finite values become null in the JSON."""
        plain = {name: float(value) for name, value in values.items()}
        self._file.write(_encode({"step": int(step), **plain}))
        # The system keeps what it was given even if this process is killed.
        self._file.flush()
        for name, value in plain.items():
            self._events.add_scalar(f"train/{name}", value, global_step=int(step))

    def close(self) -> None:
        """Flushes both files."""
        self._file.close()
        self._events.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def curve_files(workdir: PathLike) -> list[pathlib.Path]:
    """Returns the files of the training curve."""
    path = pathlib.Path(workdir)
    return [*path.glob(FILE_NAME), *path.glob(f"{EVENTS_FOLDER}/*")]


def read_curves(workdir: PathLike) -> list[dict[str, Any]]:
    """Reads the training curve so far; [] if there is none. Damaged lines are skipped with a warning."""
    path = pathlib.Path(workdir) / FILE_NAME
    if not path.exists():
        return []
    # Without the newline at its end, the last line is what a kill has left of it.
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    lines = [line for text in texts if (line := _decode(text)) is not None]
    if len(lines) < len(texts):
        logging.warning("Skipping %s of %s.", plural(len(texts) - len(lines), "damaged line"), path)
    return lines


def _decode(text: str) -> dict[str, Any] | None:
    """Returns a line of the file; None if it is damaged."""
    with contextlib.suppress(ValueError):
        line = parse_json(text)
        if fits(line, Mapping[str, float | None]) and fits(line.get("step"), int):
            return line
    return None


def _encode(line: Mapping[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
