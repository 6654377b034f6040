"""Paths in Google Cloud Storage (gs://): all work is on local copies, in `remote/` of the cache directory."""

import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress
from zsad_jax.utils.threads import map_in_threads

THREADS = 16  # of downloads, which wait for the network
Stamps = dict[pathlib.Path, tuple[int, int]]  # size and time of change (ns) of local files


def fetch(path: files.PathLike, what: str = "The path", *, missing_ok: bool = False) -> str:
    """Returns a local path with `~` expanded, or the local copy of a remote file or folder.

    Unchanged files are copied once: of several processes, one copies and the others wait. Raises `UserError`,
    about `what`, if it is not a path, or if a remote one cannot be read.
    """
    text = files.user_path(path, what, remote=True)
    if not text.startswith(files.REMOTE):
        return text
    with _copied(text, "inputs", missing_ok) as (_, local, _):
        return os.fspath(local)


class Workdir(NamedTuple):
    """A working directory: its path, its local folder, and a function that stores new results in it."""

    path: Any
    local: pathlib.Path
    push: Callable[[], None] = lambda: None


@contextlib.contextmanager
def open_workdir(path: files.PathLike, outputs: Sequence[str], what: str) -> Iterator[Workdir]:
    """Locks a working directory, see `files.alone`; a remote one must be readable and writable."""
    text = files.user_path(path, what, remote=True)
    if not text.startswith(files.REMOTE):
        with files.alone(text, outputs):
            yield Workdir(pathlib.Path(text), pathlib.Path(text))
        return
    copied = _copied(text, "runs", missing_ok=True)
    with copied as (target, local, stored), files.alone(local, outputs):
        # Written again at once, so that a read-only directory is an error now.
        stored.pop(local / files.LOCK, None)

        def push() -> None:
            now = {one: _stamp(one) for one in local.rglob("*") if one.is_file()}
            with _reporting(f"Cannot copy {local} to {target}"):
                # In the order of writing: what marks a result as finished comes last.
                for one in sorted(now, key=lambda one: now[one][1]):
                    if stored.get(one) != now[one]:
                        # In one call, so that an error never leaves a part of a file.
                        path = target / one.relative_to(local)
                        path.write_bytes(one.read_bytes())
                        # As after a copy, so that the next run does not copy it again.
                        os.utime(one, ns=(path.stat().mtime * 10**9,) * 2)
                        stored[one] = _stamp(one)
                for one in stored.keys() - now.keys():
                    (target / one.relative_to(local)).unlink(missing_ok=True)
                    del stored[one]

        push()
        yield Workdir(target, local, push)
        push()


@contextlib.contextmanager
def _copied(text: str, kind: str, missing_ok: bool) -> Iterator[tuple[Any, pathlib.Path, Stamps]]:
    """Yields a remote path, its copy, which no other process changes meanwhile, and the copied files."""
    from etils import epath

    source, root = epath.Path(text), files.home() / "remote"
    # Each address has a folder of its own: a folder that contains a working directory may be an input.
    local = root / kind / files.safe_name("/".join(source.parts[2:-1])) / source.name
    stamps: Stamps = {}

    def copy(path: pathlib.Path) -> None:
        with files.replaced(path) as temporary:
            (source / path.relative_to(local)).copy(temporary, overwrite=True)
            # The fingerprint of a dataset contains the time, and is the same on all machines.
            os.utime(temporary, ns=(stamps[path][1],) * 2)

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs errors before it raises them
    lock = root / ".locks" / files.safe_name(f"{kind}/{source}")
    lock.mkdir(parents=True, exist_ok=True)
    with files.alone(lock, wait=kind == "inputs"):
        with _reporting(f"Cannot read {source}"):
            with contextlib.suppress(*[FileNotFoundError] * missing_ok):
                # epath's own `walk` yields paths without "gs://".
                found = [source]
                for one in found:
                    status = one.stat()
                    if status.is_directory:  # it may contain an object of the same name
                        found += [new for new in one.iterdir() if new != one and new.name != ".."]
                    else:
                        path = local / one.relative_to(source)
                        stamps[path] = (status.length, status.mtime * 10**9)
            for one in sorted([local, *local.rglob("*")], reverse=True):  # folders last
                if one.is_dir():
                    with contextlib.suppress(OSError):  # it is not empty
                        one.rmdir()
                elif one not in stamps:
                    one.unlink(missing_ok=True)
            absent = [one for one in stamps if not one.is_file() or _stamp(one) != stamps[one]]
            made = map_in_threads(copy, absent, num_workers=THREADS)
            list(progress(made, total=len(absent), label=f"copy {source}", unit="file"))
        yield source, local, stamps


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


@contextlib.contextmanager
def _reporting(problem: str) -> Iterator[None]:
    """Raises errors of the storage, which are of many types, as `UserError`."""
    try:
        yield
    except Exception as error:
        if getattr(error, "filename", None):  # of the local disk
            raise
        reason = " ".join(str(error).split()) or repr(error)
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else reason
        remedy = "Check the path, and log in with gcloud auth application-default login."
        if isinstance(error, ImportError):
            remedy = 'Install the extra gcs: pip install "zsad-jax[gcs]".'
        raise UserError(f"{problem} ({reason}). {remedy}") from error
