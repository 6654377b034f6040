"""Finding the root of a benchmark: in its archives, their extracted folder, or a parent of either."""

import contextlib
import functools
import lzma
import os
import pathlib
import shlex
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from absl import logging

from zsad_jax.data.benchmarks.availability import how_to_prepare
from zsad_jax.data.benchmarks.facts import DATASETS, Archive, Facts
from zsad_jax.data.benchmarks.layouts import find_layout
from zsad_jax.data.meta_json import META_JSON
from zsad_jax.data.walk import list_folders
from zsad_jax.utils import downloads, files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress

SEARCH_DEPTH = 6  # levels of folders below the given one
# The extracted files may have this many times the size of their archive, and this much more.
MOST_EXPANSION, SPARE_BYTES = 100, 2**30
# The prefix is that of tensorflow-datasets for what is not finished.
EXTRACTED = "incomplete.extracted"
# zipfile raises RuntimeError for a password, NotImplementedError for an unknown compression.
_BROKEN_ARCHIVE = (
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError),
    *(RuntimeError, NotImplementedError),
)


@contextlib.contextmanager
def open_root(
    name: str, source: files.PathLike | None, workspace: files.PathLike, downloaded: files.PathLike
) -> Iterator[pathlib.Path]:
    """Yields the root of a benchmark, extracting its archives for as long as they are needed.

    Args:
      name: the benchmark's key.
      source: an archive, the extracted folder, or a parent of either; None: `downloaded`, into which
        archives that are open to all are downloaded.
      workspace: folder in which archives are extracted.
      downloaded: folder of downloaded archives.

    Raises:
      UserError: the benchmark is not found, or an archive is not the published one.
    """
    facts = DATASETS[name]
    if source is None:
        given = [_fetch(name, archive, pathlib.Path(downloaded)) for archive in facts.archives]
    else:
        found = _find(name, pathlib.Path(source))
        if isinstance(found, pathlib.Path):
            logging.info("Reading %s from %s.", facts.title, found)
            yield found
            return
        given = found
    target = pathlib.Path(workspace) / EXTRACTED
    files.remove(target)  # of a preparation that was killed
    files.make_removable(target)
    try:
        for archive, path in zip(facts.archives, given, strict=True):
            _check_archive(facts, archive, path)
            _extract(facts, path, target)
        root = _find_root(name, target) or _search(target, _has_meta_json)
        if root is None:
            raise UserError(
                f"{given[0]} is not an archive of {facts.title}. Expected files such as {facts.tree}. Download"
                " the official archive."
            )
        logging.info("Reading %s from %s.", facts.title, ", ".join(map(str, given)))
        yield root
    finally:
        files.remove(target)


def _fetch(name: str, archive: Archive, folder: pathlib.Path) -> pathlib.Path:
    path = folder / archive.file_name
    if not archive.url:
        if path.is_file():
            return path
        raise UserError(how_to_prepare(name, folder.parent))
    return downloads.fetch(
        archive.url,
        path,
        label=f"{DATASETS[name].title} ({archive.summary})",
        instructions=f"Download it in another way and save it as {path}",
        size=archive.size,
        check=functools.partial(_compare, archive),
    )


def _find(name: str, source: pathlib.Path) -> pathlib.Path | list[pathlib.Path]:
    """Finds the root below a folder, else all archives below it, or the archive that was given."""
    facts = DATASETS[name]
    if not source.exists():
        raise UserError(f"--source {source} does not exist. Give an archive, or a folder.")
    if source.is_file():
        if len(facts.archives) == 1:
            return [source]
        # All archives are needed: the others are expected beside the given one.
        siblings = [source.with_name(archive.file_name) for archive in facts.archives]
        if all(path.is_file() for path in siblings):
            return siblings
        source = source.parent
    root = _find_root(name, source)
    if root is not None:
        return root
    paths = []
    for archive in facts.archives:
        holds = functools.partial(_holds, archive.file_name)
        folder = _search(source, holds)
        if folder is None:
            unpack = f" (unpack with {facts.unpack})" if facts.unpack else ""
            raise UserError(
                f"{source} does not contain {facts.title}. Give the archive {archive.file_name}{unpack}, or a"
                f" folder with {facts.tree}, as --source."
            )
        paths.append(folder / archive.file_name)
    return paths


def _find_root(name: str, folder: pathlib.Path) -> pathlib.Path | None:
    """Finds the root in or below a folder; prefers a layout of this benchmark alone to a shared one."""
    layout, copies = find_layout(name), (name, DATASETS[name].folder)
    root = _search(folder, layout.is_root)
    if root is None and (layout.accepts(folder) or _has_meta_json(folder)):
        return folder
    return root or _search(folder, lambda one: one.name in copies and _has_meta_json(one))


def _holds(name: str, folder: pathlib.Path) -> bool:
    return (folder / name).is_file()


_has_meta_json = functools.partial(_holds, META_JSON)


def _search(folder: pathlib.Path, is_wanted: Callable[[pathlib.Path], bool]) -> pathlib.Path | None:
    """Returns the first folder that is wanted: the nearest, in the order of names."""
    # Level by level: BrainMRI's archive contains a second copy of itself further down.
    level = [folder]
    for _ in range(SEARCH_DEPTH + 1):
        below: list[pathlib.Path] = []
        for one in level:
            # For example lost+found, or a folder below it.
            with contextlib.suppress(PermissionError):
                if is_wanted(one):
                    return one
            with contextlib.suppress(PermissionError):
                below += list_folders(one)
        level = below
    return None


def _check_archive(facts: Facts, archive: Archive, path: pathlib.Path) -> None:
    if problem := _compare(archive, path):
        raise UserError(
            f"{path} is not the published archive of {facts.title} ({problem}). Download it again, or extract"
            " it yourself and give the folder as --source."
        )


def _compare(archive: Archive, path: pathlib.Path) -> str:
    """Describes how a file differs from a published archive; "" if it does not."""
    # The size first, since the digest of gigabytes takes minutes.
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"it has {size:,} bytes instead of {archive.size:,}"
    for name, known in (("SHA-256", archive.sha256), ("MD5", archive.md5)):
        if known and files.digest(path, name.replace("-", "").lower()) != known:
            return f"its {name} is not {known}"
    return ""


def _extract(facts: Facts, path: pathlib.Path, target: pathlib.Path) -> None:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            members = _zip_members if zipfile.is_zipfile(path) else _tar_members
            steps = _unpack(members(file), target, MOST_EXPANSION * size + SPARE_BYTES)
            label = f"Extracting {path.name}"
            for _ in progress(steps, total=size >> 20, label=label, unit="megabyte"):
                pass
    except _UnsafeMember as error:
        raise UserError(
            f"{path} cannot be extracted safely ({error}). Download the official archive again, or extract it"
            " yourself and give the folder as --source."
        ) from error
    except _BROKEN_ARCHIVE as error:
        tool = "unzip" if path.suffix.lower() == ".zip" else "tar -xf"
        command = facts.unpack or f"{tool} {shlex.quote(str(path))}"
        raise UserError(
            f"{path} is damaged or not a tar or zip archive ({error}). Download it again, or extract it"
            f" yourself ({command}) and give the folder as --source."
        ) from error
    except OSError as error:
        if not files.is_disk_full(error):
            raise
        raise UserError(
            f"The disk ran out of space while extracting {path} to {target}. Free some space, or give a folder"
            " on a larger disk as --data_dir."
        ) from error


class _UnsafeMember(Exception):  # noqa: N818 - describes the member of an archive
    """A member that no benchmark has: a link, a device, a path outside the folder, or an implausible size."""


class _Member(NamedTuple):
    """A member of an archive; `read` returns the bytes of the archive that were read so far."""

    name: str
    size: int
    is_folder: bool
    is_file: bool
    open: Callable[[], Any]
    read: Callable[[], int]


def _tar_members(file: IO[bytes]) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        # Streamed: a compressed tar has no index, and seeking would decompress it several times.
        for member in archive:
            is_file = member.isreg() and not member.issparse()
            open_member = functools.partial(archive.extractfile, member)
            yield _Member(member.name, member.size, member.isdir(), is_file, open_member, file.tell)


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    done = 0
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            done += member.compress_size
            # Archives made on Windows have no file type.
            is_file = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
            open_member = functools.partial(archive.open, member)
            read = functools.partial(int, done)
            yield _Member(
                member.filename, member.file_size, member.is_dir(), is_file, open_member, read
            )


def _unpack(members: Iterable[_Member], target: pathlib.Path, limit: int) -> Iterator[None]:
    """Writes regular files and folders below `target`; yields once per megabyte of the archive.

    Python's own filters did not stop chains of links from leaving the folder before 3.11.13 (CVE-2025-4517).
    Without links nothing can.
    """
    megabytes = 0
    for member in members:
        path = pathlib.PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in member.name:
            raise _UnsafeMember(
                f"its member {member.name!r} would be written outside of the folder"
            )
        if member.is_folder:
            (target / path).mkdir(parents=True, exist_ok=True)
            continue
        if not member.is_file:
            raise _UnsafeMember(
                f"its member {member.name!r} is a link or a device, which no benchmark has"
            )
        # The sizes are checked before writing, since an archive bomb expands without end.
        limit -= member.size
        if limit < 0:
            raise _UnsafeMember(
                f"its members are implausibly large ({member.name!r}: {member.size:,} bytes)"
            )
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(target / path, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        for _ in range(megabytes, member.read() >> 20):
            megabytes += 1
            yield
