"""Downloads of published files: resumed, verified, and under the final name only when complete."""

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import IO, Any

from zsad_jax.utils import files, interrupts
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress

CHUNK_KILOBYTES = 64  # what a broken connection can lose
ATTEMPTS = 3  # in a row without a new byte
SECONDS_BETWEEN_ATTEMPTS = 1.0  # doubled each time
TIMEOUT_SECONDS = (10.0, 30.0)  # to connect, between two packets
STRONG_ETAG = re.compile(r'"[!#-~]*"')
OTHER_DISK = "set ZSAD_JAX_HOME (for benchmarks: --data_dir) to a folder"


class NotPublishedError(UserError):
    """The server does not have the file."""


class _TransientError(Exception):
    """A failure that the next attempt may not have."""


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
    """Downloads a file once; an interrupted download resumes.

    The bytes are collected in `<destination>.part`, which gets the final name after all checks. Of several
    processes that call this for the same file, one downloads and the others wait for it.

    Args:
      url: http or https address.
      destination: the final path. An existing file is used if it has the right size.
      label: name of the file in messages.
      instructions: what to do if the download fails, a sentence without its full stop.
      size: bytes, if known.
      sha256: of the whole file, in hexadecimal, if known.
      check: returns what is wrong with the downloaded file, "" for nothing.

    Raises:
      NotPublishedError: the server does not have the file.
      UserError: the file cannot be downloaded, is not the expected one, or cannot be written.
    """
    destination = pathlib.Path(destination)
    part = destination.with_name(f"{destination.name}.part")
    if _is_complete(destination, size):
        return destination
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part) as file:
            if not _is_complete(destination, size):
                download = _Download(url, part, file, label, instructions, size)
                download.run()
                download.verify(sha256, check)
                os.fsync(file.fileno())
                part.replace(destination)
    except OSError as error:
        remedy = "Make room" if files.is_disk_full(error) else "Check its permissions"
        raise UserError(
            f"Cannot write {label} to {destination.parent} ({error.strerror}). {remedy} and run the command"
            f" again to resume, or {OTHER_DISK} on another disk."
        ) from error
    return destination


def _is_complete(destination: pathlib.Path, size: int | None) -> bool:
    if not destination.exists():
        return False
    found = destination.stat().st_size
    if size not in (None, found):
        raise UserError(
            f"{destination} has {found:,} bytes instead of {size:,}. Delete it to download it again."
        )
    return True


@contextlib.contextmanager
def _alone(part: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a part file for appending while no other process has it; an empty one is removed."""
    while True:
        file = open(part, "ab", buffering=0)  # noqa: SIM115 - closed below
        fcntl.flock(file, fcntl.LOCK_EX)
        # The process that had the lock before may have renamed the file, or removed it.
        if _has_name(file, part):
            break
        file.close()
    try:
        yield file
    finally:
        renamed, empty = not _has_name(file, part), not _length(file)
        if renamed or empty:
            _etag_file(part).unlink(missing_ok=True)
        if empty and not renamed:
            part.unlink()
        file.close()


def _has_name(file: IO[bytes], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _length(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _etag_file(part: pathlib.Path) -> pathlib.Path:
    """Returns the file with the server's name for the version that a part belongs to."""
    return part.with_name(f"{part.name}.etag")


@dataclasses.dataclass(frozen=True)
class _Download:
    """A download into an open part file."""

    url: str
    part: pathlib.Path
    file: IO[bytes]
    label: str
    instructions: str
    size: int | None

    def run(self) -> None:
        """Attempts the download until it is complete or makes no progress."""
        failures = 0
        while True:
            before = _length(self.file)
            try:
                return self._request()
            except _TransientError as error:
                # Progress resets the count: a large file over a bad line may need many attempts.
                failures = failures + 1 if _length(self.file) <= before else 1
                if failures >= ATTEMPTS:
                    raise self._failure(str(error)) from error
            time.sleep(SECONDS_BETWEEN_ATTEMPTS * 2 ** (failures - 1))

    def verify(self, sha256: str | None, check: Callable[[pathlib.Path], str]) -> None:
        """Removes the part file and raises an error if it is not the expected one."""
        found = _length(self.file)
        if self.size not in (None, found):
            problem = f"it has {found:,} bytes instead of {self.size:,}"
        elif sha256 is not None and files.digest(self.part) != sha256:
            problem = "its SHA-256 is not the published one"
        elif not found:
            problem = "it is empty"
        else:
            problem = check(self.part)
        if problem:
            self.part.unlink()
            raise self._failure(f"{problem}, so the download was deleted")

    def _failure(self, reason: str, kind: type[UserError] = UserError) -> UserError:
        where = f"{self.label} from {self.url}"
        return kind(f"Cannot download {where} ({reason}). {self.instructions}.")

    def _request(self) -> None:
        """Downloads in one request what is missing from the part file."""
        import requests

        if self.size is not None and _length(self.file) == self.size:
            return
        # Compressed answers have other lengths and offsets than the file.
        headers = {"Accept-Encoding": "identity", **self._range()}
        try:
            answer = requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS)
            with answer as response:
                if self._is_past_the_end(response):
                    return
                self._check_status(response)
                if response.status_code == requests.codes.ok:
                    self._empty()
                left = self._count_left(response)
                if left is not None:
                    self._check_room(left)
                self._remember_version(response)
                self._append(response, left)
        # ValueError: requests passes on what it cannot parse, for example an invalid Location.
        except (requests.RequestException, ValueError) as error:
            raise _TransientError(_reason(error, self.url)) from error

    def _range(self) -> dict[str, str]:
        """Returns the headers that request the rest only."""
        have, etag = _length(self.file), self._etag()
        if have and etag and (self.size is None or have < self.size):
            # If-Range: a server with a newer version sends the whole file (status 200), not the rest of it.
            return {"Range": f"bytes={have}-", "If-Range": etag}
        self._empty()  # these bytes may belong to an earlier version of the file
        return {}

    def _etag(self) -> str:
        """Returns the server's name for the version of the part; "" if it is unknown."""
        path = _etag_file(self.part)
        etag = path.read_text(errors="replace") if path.exists() else ""
        return etag if STRONG_ETAG.fullmatch(etag) else ""

    def _empty(self) -> None:
        if _length(self.file):
            self.file.truncate(0)

    def _count_left(self, response: Any) -> int | None:
        """Returns how many bytes are to follow; None if nobody knows."""
        length = response.headers.get("Content-Length")
        if response.status_code == 206:
            have = _length(self.file)
            sent = response.headers.get("Content-Range", "")
            found = re.fullmatch(rf"bytes {have}-(\d+)/(\d+)", sent)
            same = response.headers.get("ETag") in (None, self._etag())
            if not (have and same and found and have <= int(found[1]) == int(found[2]) - 1):
                self._empty()
                raise _TransientError("the server sent another part of the file than requested")
            return int(found[2]) - have
        if length and "Content-Encoding" not in response.headers:
            return int(length)
        return self.size

    def _is_past_the_end(self, response: Any) -> bool:
        if response.status_code != 416:
            return False
        if response.headers.get("Content-Range") == f"bytes */{_length(self.file)}":
            return True
        self._empty()
        raise _TransientError("the partial file does not match the file on the server")

    def _check_status(self, response: Any) -> None:
        status = response.status_code
        answer = f"the server answered {status} {response.reason}"
        if status == 429 or status >= 500:
            raise _TransientError(answer)
        if status >= 400:
            raise self._failure(answer, NotPublishedError)
        if status not in (200, 206):  # for example 204, or a redirection without an address
            raise self._failure(answer)
        # Login pages and error pages of file hosts come with status 200.
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise self._failure("the server sent a web page instead")

    def _check_room(self, left: int) -> None:
        total = _length(self.file) + left
        if self.size not in (None, total):
            raise self._failure(
                f"it has {total:,} bytes on the server instead of {self.size:,}, so it is a different file"
            )
        free = shutil.disk_usage(self.part.parent).free
        if left > free:
            raise UserError(
                f"Downloading {self.label} needs {left:,} more bytes in {self.part.parent}, but only {free:,}"
                f" are free. Make room, or {OTHER_DISK} on a larger disk."
            )

    def _remember_version(self, response: Any) -> None:
        """Stores the name of this version of the file, without which a part cannot be resumed."""
        etag = response.headers.get("ETag", "")
        # A weak tag (W/"...") may stay the same while bytes change, so it cannot vouch for a part.
        if STRONG_ETAG.fullmatch(etag):
            files.write_text(_etag_file(self.part), etag)
        else:
            _etag_file(self.part).unlink(missing_ok=True)

    def _append(self, response: Any, left: int | None) -> None:
        before = _length(self.file)
        chunks = response.iter_content(CHUNK_KILOBYTES * 1024)
        if left:
            total, label, unit = math.ceil(left / 1024), f"Downloading {self.label}", "kilobyte"
            chunks = progress(chunks, total=total, label=label, unit=unit, step=CHUNK_KILOBYTES)
        for chunk in chunks:
            interrupts.check()
            if left is not None and _length(self.file) - before + len(chunk) > left:
                self._empty()
                raise _TransientError(f"the server sent more than {left:,} bytes")
            written = 0
            while written < len(chunk):  # an unbuffered write may be partial
                written += self.file.write(chunk[written:])
        if left is not None and _length(self.file) - before != left:
            raise _TransientError("the connection was closed")


def _reason(error: Exception, url: str) -> str:
    import requests

    reasons = {
        requests.Timeout: "no answer in time",
        requests.exceptions.ChunkedEncodingError: "the connection was closed",
        requests.ConnectionError: f"no connection to {urllib.parse.urlsplit(url).hostname}",
    }
    return next((text for kind, text in reasons.items() if isinstance(error, kind)), str(error))
