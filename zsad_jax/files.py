"""Writing files so that a kill at any moment leaves either the old file or the new one."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import logging

from zsad_jax.errors import UserError

PathLike = str | os.PathLike[str]


def home() -> pathlib.Path:
    """The cache directory: `ZSAD_JAX_HOME`, else `~/.cache/zsad_jax`. Not created here."""
    return pathlib.Path(os.environ.get("ZSAD_JAX_HOME") or "~/.cache/zsad_jax").expanduser()


@contextlib.contextmanager
def replaced(path: PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and takes that name."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since writers such as numpy's and matplotlib's choose a format by it.
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem}.", suffix=f".part{path.suffix}", dir=path.parent
    )
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with replaced(path) as temporary:
        # Names of files need not be valid text; what stands for other bytes is escaped as JSON does it.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: PathLike, value: Any) -> None:
    """Writes JSON atomically: indented, one trailing newline, NaN refused (undefined is null)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def is_disk_full(error: Exception) -> bool:
    """Whether an error says that a disk is full; some libraries say it in words only."""
    number = getattr(error, "errno", None)
    words = ("No space left on device", "Not enough disk space")
    return number in (errno.ENOSPC, errno.EDQUOT) or any(word in str(error) for word in words)


def safe_name(text: str) -> str:
    """A text as a file's name on any system: what is no letter, digit, ".", "+" or "-" becomes "_"."""
    return re.sub(r"[^\w.+-]", "_", text)


def digest(path: PathLike, algorithm: str = "sha256") -> str:
    """The SHA-256 (or another digest) of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def alone(folder: PathLike) -> Iterator[None]:
    """Makes sure that no other process works in a folder, which is created; the lock ends with the process.

    Raises:
      UserError: one does, or the folder cannot be written.
    """
    path = pathlib.Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written to ({error.strerror}); choose another."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is in use by another process; wait for it, or choose another folder."
            ) from error
        except OSError as error:  # some network file systems have no locks
            logging.warning(
                "%s cannot be locked (%s): let only one process work in it.", folder, error.strerror
            )
        yield
