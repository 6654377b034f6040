"""Atomic writes: a kill at any moment leaves either the old file or the new one."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from zsad_jax.utils.errors import UserError

PathLike = str | os.PathLike[str]

LOCK = ".zsad_jax.lock"
REMOTE = "gs://"
MARK = ".zsad_jax"  # a file in directories that the library creates and may remove
LONGEST_NAME = 80
# Names that `replaced` gives, and those of directories of tensorflow-datasets and ours.
_TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}\.part(\.[^.]*)?", re.DOTALL)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_UNFINISHED = re.compile(r"incomplete\.(extracted|[A-Z0-9]{6}_.*)")


def home() -> pathlib.Path:
    """Returns the cache directory: `ZSAD_JAX_HOME`, else `~/.cache/zsad_jax`; it is not created."""
    place = user_path(os.environ.get("ZSAD_JAX_HOME") or "~/.cache/zsad_jax", "ZSAD_JAX_HOME")
    return pathlib.Path(place).absolute()


def user_path(path: Any, what: str = "The path", *, remote: bool = False) -> str:
    """Returns a path of a user with `~` expanded; raises `UserError`, about `what`, if it is not a path.

    Only with `remote` may it be in Google Cloud Storage; see `zsad_jax.utils.remote`.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if not text.strip() or "\0" in text:
        raise UserError(
            f"{what} is {path!r}. Expected a file or a folder. If it is from a shell variable, check that the"
            " variable is set."
        )
    if _ADDRESS.match(text) and not (remote and text.startswith(REMOTE)):
        raise UserError(
            f"{what} is {text!r}. Expected a local path{f' or {REMOTE}BUCKET/PATH' * remote}. Name a local one,"
            " and copy the files, for example with gcloud storage cp."
        )
    return os.path.expanduser(text)


def make_removable(folder: PathLike) -> None:
    """Creates a directory, or marks a new one, so that `remove` accepts it."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / MARK).touch()


def is_removable(folder: PathLike) -> bool:
    """Returns whether a path is a directory that `make_removable` marked, or an empty one, and not a link."""
    path = pathlib.Path(folder)
    if path.is_symlink() or not path.is_dir():
        return False
    return (path / MARK).is_file() or not any(path.iterdir())  # a kill can come before the mark


def remove(folder: PathLike) -> None:
    """Removes a directory tree that the library created; a missing directory is ignored.

    Links in it are removed, not followed. Raises `UserError` if the path is a link, or is not a directory that
    `make_removable` marked.
    """
    path = pathlib.Path(folder)
    if not os.path.lexists(path):
        return
    if not is_removable(path):
        raise UserError(
            f"{path} was not created by zsad_jax, so it is not removed. Move it elsewhere and run the command"
            " again."
        )
    for one in path.iterdir():
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one, ignore_errors=True)
        elif one.name != MARK:
            one.unlink()
    # The mark comes last: what a kill leaves can still be removed.
    shutil.rmtree(path, ignore_errors=True)


def sweep(folder: PathLike, outputs: Iterable[str] = ()) -> None:
    """Removes what killed runs left in a folder, while no other process writes to it (see `alone`).

    This is: temporary files of `replaced`, in the folder and below those of its `outputs` that are folders,
    and directories of unfinished work, if `remove` accepts them.
    """
    path = pathlib.Path(folder)
    for one in path.iterdir():
        if _UNFINISHED.fullmatch(one.name) and is_removable(one):
            remove(one)
    trees = [path / name for name in outputs if not (path / name).is_symlink()]
    levels = itertools.chain(itertools.islice(os.walk(path), 1), *map(os.walk, trees))
    for place, _, names in levels:
        for name in filter(_TEMPORARY.fullmatch, names):
            pathlib.Path(place, name).unlink(missing_ok=True)


@contextlib.contextmanager
def replaced(path: PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and takes that name.

    Raises `OSError` if the file cannot be written; always with its path, which few writers name.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since writers such as numpy's and matplotlib's choose a format by it.
    suffix = f".part{path.suffix}"
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        # Without the flush, a crash can leave the new name with the old length, or empty.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        number = errno.ENOSPC if is_disk_full(error) else error.errno
        if number is None or error.filename is not None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with replaced(path) as temporary:
        # File names need not be valid text; stand-ins for other bytes are escaped like in JSON.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: PathLike, value: Any) -> None:
    """Writes JSON atomically: indented, one trailing newline, NaN rejected (undefined is null)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def is_disk_full(error: Exception) -> bool:
    """Returns whether an error means that a disk is full."""
    number = getattr(error, "errno", None)  # some libraries raise errors without a number
    # The last is numpy's: "1000 requested and 200 written".
    words = ("No space left on device", "Not enough disk space", " requested and ")
    return number in (errno.ENOSPC, errno.EDQUOT) or any(word in str(error) for word in words)


def safe_name(text: str) -> str:
    """Returns a text as a file name that is valid on any system; different texts have different names.

    All but letters, digits, ".", "+" and "-" becomes "_". A text that is changed, starts with "." or is long
    gets a digest at its end.
    """
    plain = re.sub(r"[^\w.+-]", "_", text)
    if plain == text and not plain.startswith(".") and 0 < len(plain) <= LONGEST_NAME:
        return plain
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
    return f"{plain.lstrip('.')[:LONGEST_NAME]}-{digest}"


def digest(path: PathLike, algorithm: str = "sha256") -> str:
    """Returns the SHA-256 (or another digest) of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def alone(folder: PathLike, outputs: Sequence[str] = (), *, wait: bool = False) -> Iterator[None]:
    """Locks a folder for this process, creates it, and removes what killed runs left in it (see `sweep`).

    Raises `UserError` if another process uses the folder (without `wait`), if it cannot be written to,
    or if it has no lock file but files with the names of `outputs`, which are then the user's own.
    """
    path = pathlib.Path(folder) / LOCK
    is_new = not path.parent.exists()
    for name in () if path.exists() else outputs:
        if os.path.lexists(path.with_name(name)):
            raise UserError(
                f"{folder} contains {name!r}, which was not written by zsad_jax and would be overwritten."
                " Choose another folder for the results."
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written to ({error.strerror}). Choose another folder."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is in use by another process. Wait for it, or choose another folder."
            ) from error
        except OSError as error:  # some network file systems have no locks
            words = "%s cannot be locked (%s). Use it with one process at a time."
            logging.warning(words, folder, error.strerror)
        else:
            sweep(folder, outputs)
        try:
            yield
        finally:
            # A command that was rejected has written nothing else.
            if is_new and os.listdir(path.parent) == [LOCK]:
                path.unlink()
                path.parent.rmdir()
