"""Fetching published files: resumed, checked, and under the final name only when complete."""

import contextlib
import fcntl
import math
import os
import pathlib
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress

CHUNK_KILOBYTES = 64  # what a broken connection can lose
ATTEMPTS = 3  # in a row without a single new byte
SECONDS_BETWEEN_ATTEMPTS = 1.0  # doubled each time
TIMEOUT_SECONDS = (10.0, 60.0)  # to connect, between two packets


class NotPublishedError(UserError):
    """The server has no such file."""


class _TransientError(Exception):
    """A failure that may be gone at the next attempt."""


class _Wanted(NamedTuple):
    """What is fetched; `part` is where its bytes gather."""

    url: str
    part: pathlib.Path
    label: str
    instructions: str
    size: int | None
    sha256: str | None
    check: Callable[[pathlib.Path], str]

    @property
    def etag_file(self) -> pathlib.Path:
        """Holds the server's name for the version of the file that the part belongs to."""
        return self.part.with_name(f"{self.part.name}.etag")

    def failure(self, reason: str, kind: type[UserError] = UserError) -> UserError:
        """The error that tells why the file cannot be had, and what to do instead."""
        return kind(
            f"{self.label} could not be fetched from {self.url} ({reason}): {self.instructions}."
        )


def fetch(
    url: str,
    destination: files.PathLike,
    *,
    label: str,
    instructions: str,
    size: int | None = None,
    sha256: str | None = None,
    check: Callable[[pathlib.Path], str] = lambda part: "",
) -> pathlib.Path:
    """Downloads a file once; an interrupted download goes on where it stopped.

    The bytes gather in `<destination>.part`, which takes the final name after all checks. Several
    processes may call this for the same file: one downloads, the others wait for it.

    Args:
      url: http or https address.
      destination: the final path. A file that is there already is taken, its size checked.
      label: what is fetched, for people.
      instructions: what to do when it cannot be fetched, the end of a sentence.
      size: bytes, when known.
      sha256: of the whole file, in hexadecimal, when known.
      check: says what is wrong with a file that was fetched, "" when nothing is.

    Raises:
      NotPublishedError: the server has no such file.
      UserError: the file cannot be had, is not what was expected, or cannot be written.
    """
    destination = pathlib.Path(destination)
    part = destination.with_name(f"{destination.name}.part")
    wanted = _Wanted(url, part, label, instructions, size, sha256, check)
    if _is_complete(destination, size):
        return destination
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _alone(wanted) as file:
            if not _is_complete(destination, size):
                _download_patiently(wanted, file)
                _verify(wanted)
                os.fsync(file.fileno())
                part.replace(destination)
    except OSError as error:
        raise UserError(_cannot_write(error, destination, label)) from error
    return destination


def _is_complete(destination: pathlib.Path, size: int | None) -> bool:
    if not destination.exists():
        return False
    if size is not None and destination.stat().st_size != size:
        raise UserError(
            f"{destination} has {destination.stat().st_size:,} bytes instead of {size:,}:"
            " delete it, and it will be fetched again."
        )
    return True


@contextlib.contextmanager
def _alone(wanted: _Wanted) -> Iterator[IO[bytes]]:
    """Opens the part file for appending while no other process has it; an empty one is removed."""
    part = wanted.part
    while True:
        file = open(part, "ab", buffering=0)  # noqa: SIM115 - closed below
        fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever had the lock before may have given the file its final name, or removed it.
        if _has_name(file, part):
            break
        file.close()
    try:
        yield file
    finally:
        renamed = not _has_name(file, part)
        if renamed or _length(file) == 0:
            wanted.etag_file.unlink(missing_ok=True)
        if not renamed and _length(file) == 0:
            part.unlink()
        file.close()


def _has_name(file: IO[bytes], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _download_patiently(wanted: _Wanted, file: IO[bytes]) -> None:
    """Attempts the download until it is whole or nothing moves any more."""
    failures = 0
    while True:
        before = _length(file)
        try:
            return _download(wanted, file)
        except _TransientError as error:
            failures = failures + 1 if _length(file) <= before else 1
            if failures >= ATTEMPTS:
                raise wanted.failure(str(error)) from error
        time.sleep(SECONDS_BETWEEN_ATTEMPTS * 2 ** (failures - 1))


def _download(wanted: _Wanted, file: IO[bytes]) -> None:
    """Fetches what is missing from the part file, in one request."""
    import requests

    if wanted.size is not None and _length(file) == wanted.size:
        return
    headers = {"Accept-Encoding": "identity", **_range_to_continue(wanted, file)}
    try:
        with requests.get(
            wanted.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS
        ) as response:
            if _is_past_the_end(response, file):
                return
            _check_answer(response, wanted)
            if response.status_code != requests.codes.partial_content:
                _empty(file)
            left = _bytes_left(response)
            _check_fits(wanted, _length(file), left)
            _remember_version(response, wanted)
            _append(response, file, label=wanted.label, left=left)
    except requests.RequestException as error:
        raise _TransientError(_reason(error, wanted.url)) from error


def _range_to_continue(wanted: _Wanted, file: IO[bytes]) -> dict[str, str]:
    """The request's headers that ask for the rest only."""
    have = _length(file)
    if have and wanted.etag_file.exists() and (wanted.size is None or have < wanted.size):
        return {"Range": f"bytes={have}-", "If-Range": wanted.etag_file.read_text()}
    _empty(file)  # nothing says that these bytes belong to the file of today
    return {}


def _is_past_the_end(response: Any, file: IO[bytes]) -> bool:
    """Whether the answer is that nothing is left to fetch."""
    if response.status_code != 416:
        return False
    if response.headers.get("Content-Range") == f"bytes */{_length(file)}":
        return True
    _empty(file)
    raise _TransientError("what was there before does not fit")


def _check_answer(response: Any, wanted: _Wanted) -> None:
    status = response.status_code
    answer = f"the server answered {status} {response.reason}"
    if status == 429 or status >= 500:
        raise _TransientError(answer)
    if status >= 400:
        raise wanted.failure(answer, NotPublishedError)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise wanted.failure("a web page came instead")


def _bytes_left(response: Any) -> int | None:
    """Length of the answer, where the server tells it."""
    length = response.headers.get("Content-Length")
    return int(length) if length and "Content-Encoding" not in response.headers else None


def _check_fits(wanted: _Wanted, have: int, left: int | None) -> None:
    if left is None:
        return
    if wanted.size is not None and have + left != wanted.size:
        raise wanted.failure(
            f"it has {have + left:,} bytes there instead of {wanted.size:,}, so it is another file"
        )
    free = shutil.disk_usage(wanted.part.parent).free
    if left > free:
        raise UserError(
            f"{wanted.label} needs {left:,} more bytes in {wanted.part.parent}, where only"
            f" {free:,} are free: make room, or set ZSAD_JAX_HOME (of benchmarks:"
            " --data_dir) to a folder on a larger disk."
        )


def _append(response: Any, file: IO[bytes], *, label: str, left: int | None) -> None:
    before = _length(file)
    chunks = response.iter_content(CHUNK_KILOBYTES * 1024)
    if left:
        chunks = progress(
            chunks,
            total=math.ceil(left / 1024),
            label=f"Fetching {label}",
            unit="kilobyte",
            step=CHUNK_KILOBYTES,
        )
    for chunk in chunks:
        written = 0
        while written < len(chunk):  # an unbuffered write may be partial
            written += file.write(chunk[written:])
    if left is not None and _length(file) - before != left:
        raise _TransientError("the connection broke off")


def _verify(wanted: _Wanted) -> None:
    found = wanted.part.stat().st_size
    if wanted.size is not None and found != wanted.size:
        problem = f"{found:,} bytes came instead of {wanted.size:,}"
    elif wanted.sha256 is not None and files.digest(wanted.part) != wanted.sha256:
        problem = "its SHA-256 is not the published one"
    else:
        problem = wanted.check(wanted.part)
    if not problem:
        return
    wanted.part.unlink()
    raise wanted.failure(f"{problem}, so it was thrown away")


def _length(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _empty(file: IO[bytes]) -> None:
    if _length(file):
        file.truncate(0)


def _remember_version(response: Any, wanted: _Wanted) -> None:
    """Keeps the name of this version of the file, without which a part cannot be continued."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        files.write_text(wanted.etag_file, etag)
    else:
        wanted.etag_file.unlink(missing_ok=True)


def _reason(error: Exception, url: str) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {urllib.parse.urlsplit(url).hostname}"
    return str(error)


def _cannot_write(error: OSError, destination: pathlib.Path, label: str) -> str:
    if files.is_disk_full(error):
        return (
            f"The disk of {destination.parent} became full while {label} was fetched: make room and"
            " call again (it goes on where it stopped), or set ZSAD_JAX_HOME (of benchmarks:"
            " --data_dir) to a larger disk."
        )
    return (
        f"{label} cannot be written to {destination.parent} ({error.strerror}): mend that, or set"
        " ZSAD_JAX_HOME (of benchmarks: --data_dir) to a folder that can be written."
    )
