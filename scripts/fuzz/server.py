"""Fuzz test that downloads from a server that misbehaves.

    python scripts/fuzz/server.py --count 150 --seed 0

Whatever the server answers, a download must end with the right file or with a `UserError`: never with other
bytes where the size or the digest is known, with a mixture of two answers where neither is, or with more
bytes than the known size.
"""

import contextlib
import functools
import hashlib
import pathlib
import socketserver
import sys
import tempfile
import threading
import unittest.mock
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from runner import Case, WrongError, make_parser, run_cases

from zsad_jax.utils import downloads

CONTENT = np.random.default_rng(0).bytes(150_000)
OTHER = np.random.default_rng(1).bytes(160_000)
ENDLESS = CONTENT * 100
COMPRESSED = (zlib.compress(CONTENT), CONTENT, zlib.compress(bytes(5 * 10**7)))
ETAGS = ('"v1"', '"v2"', 'W/"v1"', "v1", '"', "\xff", "")
STATUSES = (100, 200, 201, 204, 206, 301, 302, 304, 307, 400, 404, 416, 429, 500, 503, 599, 999)
LENGTHS = ("0", "-5", "few", "1, 2", "10" * 20, "1" * 5000, "150000, 150000", "150_000")
PLACES = (
    "",
    "/",
    "http://[1",
    "//",
    "file:///etc/passwd",
    "\xff\xfe",
    "http://127.0.0.1:1/",
    "x" * 9000,
)
RANGES = (
    *("", "bytes", "bytes */*", "bytes */150000", "bytes 0-149999/150000", "bytes 5-4/150000"),
    *("items {start}-149999/150000", "bytes {start}-149998/150000", "bytes {start}-/150000"),
    *(
        "bytes {start}-149999/*",
        "bytes {start}-149999/150000",
        "bytes -1-5/9",
        "bytes {start}-9/10",
    ),
)


class Answer(NamedTuple):
    """An answer of the server.

    Attributes:
      kind: what is wrong with it.
      head: status line and headers; "{start}" stands for the first byte that was requested.
      body: sent from that byte on if the status is 206.
    """

    kind: str
    head: str
    body: bytes = CONTENT


def http(*headers: str, status: int = 200) -> str:
    return "\r\n".join([f"HTTP/1.1 {status} Words", *headers, "Connection: close", "", ""])


def draw_answer(rng: np.random.Generator) -> Answer:
    """Draws an answer with one or two mistakes, or none."""

    def pick(options: Sequence[str]) -> str:
        return options[rng.integers(len(options))]

    kind = pick((
        *("good", "good rest", "length", "range", "etag", "status", "redirect", "shorter", "longer"),
        *("endless", "other file", "page", "compressed", "chunks", "noise", "silence", "many headers"),
    ))  # fmt: skip
    length, etag = f"Content-Length: {len(CONTENT)}", 'ETag: "v1"'
    cut = int(rng.integers(len(CONTENT)))
    rest = "Content-Range: bytes {start}-149999/150000"
    match kind:
        case "good":
            return Answer(kind, http(length, etag))
        case "good rest":
            return Answer(kind, http(rest, etag, status=206))
        case "length":
            return Answer(kind, http(f"Content-Length: {pick(LENGTHS)}", etag))
        case "range":
            return Answer(kind, http(f"Content-Range: {pick(RANGES)}", etag, status=206))
        case "etag":
            tag = pick(ETAGS)
            head = http(rest, f"ETag: {tag}", status=int(rng.choice([200, 206])))
            return Answer(kind, head, CONTENT if tag == '"v1"' else OTHER)
        case "status":
            return Answer(kind, http(etag, status=int(rng.choice(STATUSES))), CONTENT[:cut])
        case "redirect":
            return Answer(kind, http(f"Location: {pick(PLACES)}", status=302), b"")
        case "shorter":
            return Answer(kind, http(*[length] * int(rng.integers(2)), etag), CONTENT[:cut])
        case "longer":
            return Answer(kind, http(*[length] * int(rng.integers(2)), etag), CONTENT + OTHER)
        case "endless":
            return Answer(kind, http(etag), ENDLESS)
        case "other file":
            return Answer(kind, http(f"Content-Length: {len(OTHER)}", etag), OTHER)
        case "page":
            return Answer(kind, http("Content-Type: text/html", length), b"<html>")
        case "compressed":
            return Answer(kind, http("Content-Encoding: deflate", etag), pick(COMPRESSED))
        case "chunks":
            size = pick((b"249f0", b"-1", b"zz", b"fffffffffffffffff", b""))
            end = pick((b"\r\n0\r\n\r\n", b"", b"\r\n"))
            head = http("Transfer-Encoding: chunked", etag)
            return Answer(kind, head, size + b"\r\n" + CONTENT + end)
        case "noise":
            return Answer(
                kind,
                pick(("", "\0" * 99, "HTTP/1.1 \r\n\r\n", "HTTP/9 x", "\r\n" * 50)),
                OTHER[:cut],
            )
        case "many headers":
            return Answer(kind, http(*(f"X-{number}: 1" for number in range(300)), length))
        case _:
            return Answer("silence", "", b"")


class Handler(socketserver.StreamRequestHandler):
    """Sends the next answer of the server's list; then closes connections."""

    def handle(self) -> None:
        start = 0
        while line := self.rfile.readline().strip():
            if line.lower().startswith(b"range: bytes="):
                start = int(line.split(b"=")[1].rstrip(b"-"))
        server: Any = self.server
        if not server.answers:
            return
        answer = server.answers.pop(0)
        try:
            if answer.kind == "silence":
                server.stop.wait(5)
            head = answer.head.replace("{start}", str(start)).encode("latin-1")
            self.wfile.write(head)
            self.wfile.write(answer.body[start:] if b" 206 " in head[:14] else answer.body)
        except OSError:  # the client has enough
            pass


def draw_case(rng: np.random.Generator, position: int) -> Case:
    answers = [draw_answer(rng) for _ in range(rng.integers(1, 4))]
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    known = {name: value for name, value in known.items() if rng.random() < 0.5}
    have = rng.choice([0, 0, 1000, 100_000, 150_000, 155_000])
    part = (
        (CONTENT + OTHER)[:have],
        ETAGS[rng.integers(len(ETAGS))] if rng.random() < 0.3 else '"v1"',
    )
    names = ", ".join(answer.kind for answer in answers)
    act = functools.partial(download, answers, known, *part)
    return Case(answers[0].kind, f"case {position}: {names}; {[*known]}, {have} bytes", act)


def download(answers: list[Answer], known: dict[str, Any], part: bytes, etag: str) -> None:
    """Downloads, and checks what was accepted."""
    with (
        tempfile.TemporaryDirectory() as place,
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server,
    ):
        server.daemon_threads, server.block_on_close = True, False
        server.answers, server.stop = [*answers], threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        path = pathlib.Path(place, "inner", "file.npz")
        path.parent.mkdir()
        if part:
            path.with_name("file.npz.part").write_bytes(part)
            path.with_name("file.npz.part.etag").write_bytes(etag.encode("latin-1"))
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/file.npz"
            downloads.fetch(url, path, label="a file", instructions="Try later", **known)
            check(path.read_bytes(), answers, known, part)
        finally:
            server.stop.set()
            server.shutdown()
            sizes = [one.stat().st_size for one in path.parent.iterdir()]
            if "size" in known and max(sizes, default=0) > max(known["size"], len(part)):
                raise WrongError(f"more bytes than the known size: {sizes}")


def check(found: bytes, answers: list[Answer], known: dict[str, Any], part: bytes) -> None:
    if found == CONTENT:
        return
    if known:
        raise WrongError(f"accepted other bytes than {known}")
    # Without size and digest, a file is complete when the server says so.
    for answer in answers:
        whole = answer.body
        if answer.kind == "compressed":
            with contextlib.suppress(zlib.error):
                whole = zlib.decompress(whole)
        if found == whole:
            return
    raise WrongError(f"accepted {len(found)} bytes that no answer consists of")


def draw_cases(count: int, seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for position in range(count):
        yield draw_case(rng, position)


def main(arguments: list[str] | None = None) -> int:
    options = make_parser(__doc__, 150, "downloads").parse_args(arguments)
    with unittest.mock.patch.multiple(
        downloads, SECONDS_BETWEEN_ATTEMPTS=0.0, TIMEOUT_SECONDS=(1.0, 0.2)
    ):
        return run_cases(draw_cases(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
