import functools
import hashlib
import http.server
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import threading
import time

import pytest

from zsad_jax.utils import downloads
from zsad_jax.utils.errors import UserError

CONTENT = bytes(range(256)) * 4096 * 3  # three megabytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """A server of CONTENT with byte ranges; failures are configured on the server object."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        if server.statuses:
            status = server.statuses.pop(0)
            if status != 200:
                return self.answer(status, b"sorry")
        start, asked = 0, self.headers.get("Range")
        if asked and self.headers.get("If-Range") == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= len(CONTENT):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(CONTENT)}"})
        headers = dict(server.headers)
        if start:
            place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            headers = {"Content-Range": place} | headers | server.headers_of_rest
        return self.answer(206 if start else 200, CONTENT[start:], headers)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), "ETag": self.server.etag, **(headers or {})}
        for name, value in sent.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        limits = self.server.break_off_after
        limit = limits.pop(0) if limits and status in (200, 206) else None
        for position in range(0, len(body[:limit]), 1 << 16):
            self.wfile.write(body[:limit][position : position + (1 << 16)])
            time.sleep(self.server.pause)
        self.close_connection = limit is not None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.requests, server.statuses, server.break_off_after = [], [], []
        server.etag, server.headers, server.pause = '"v1"', {}, 0.0
        server.headers_of_rest = {}
        server.url = f"http://127.0.0.1:{server.server_port}/weights.npz"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def skip_waiting(monkeypatch):
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)


def fetch(url, folder, **options):
    options = {"label": "the test file", "instructions": "Ask a friend", **options}
    return downloads.fetch(url, pathlib.Path(folder) / "weights.npz", **options)


def test_downloads_once_and_leaves_no_other_file(server, tmp_path):
    for _ in range(2):
        path = fetch(server.url, tmp_path / "new", size=len(CONTENT), sha256=SHA256)
        assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert os.listdir(tmp_path / "new") == ["weights.npz"]


def test_continues_broken_connection_in_same_call(server, tmp_path):
    server.break_off_after = [15 << 16, 7 << 16]
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT
    ranges = [request.get("Range") for request in server.requests]
    assert ranges == [None, f"bytes={15 << 16}-", f"bytes={22 << 16}-"]


def test_later_call_resumes(server, tmp_path):
    server.break_off_after = [15 << 16, 0, 0]
    with pytest.raises(UserError, match=r"the test file .*was closed.*Ask a friend"):
        fetch(server.url, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["weights.npz.part", "weights.npz.part.etag"]
    server.requests.clear()
    assert fetch(server.url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert [request["Range"] for request in server.requests] == [f"bytes={15 << 16}-"]
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_does_not_continue_part_of_other_version(server, tmp_path):
    (tmp_path / "weights.npz.part").write_bytes(b"x" * 1000)
    (tmp_path / "weights.npz.part.etag").write_text('"v0"')
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


def test_does_not_continue_part_without_etag(server, tmp_path):
    (tmp_path / "weights.npz.part").write_bytes(b"x" * 1000)
    server.etag = ""
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("etag", [b"", b"v1", b'"v\n1"', b'W/"v1"', b"\xff"])
def test_does_not_continue_part_with_invalid_etag(server, tmp_path, etag):
    (tmp_path / "weights.npz.part").write_bytes(b"x" * 1000)
    (tmp_path / "weights.npz.part.etag").write_bytes(etag)
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": None},
        {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"},
        {"Content-Range": f"bytes 1000-{len(CONTENT) - 2}/{len(CONTENT)}"},
        {"Content-Range": "bytes 1000-*/*"},
        {"ETag": '"v2"'},
    ],
)
def test_does_not_append_other_part_than_requested(server, tmp_path, headers):
    (tmp_path / "weights.npz.part").write_bytes(b"x" * 1000)
    (tmp_path / "weights.npz.part.etag").write_text(server.etag)
    server.headers_of_rest = headers
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT
    assert ["Range" in request for request in server.requests] == [True, False]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_renames_complete_part(server, tmp_path, size):
    (tmp_path / "weights.npz.part").write_bytes(CONTENT)
    (tmp_path / "weights.npz.part.etag").write_text(server.etag)
    assert fetch(server.url, tmp_path, size=size).read_bytes() == CONTENT


def test_restarts_when_part_is_too_long(server, tmp_path):
    (tmp_path / "weights.npz.part").write_bytes(CONTENT + b"more")
    (tmp_path / "weights.npz.part.etag").write_text(server.etag)
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


def test_retries_busy_server(server, tmp_path):
    server.statuses = [503, 429, 200]
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


def test_missing_file_raises_own_error(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(downloads.NotPublishedError):
        fetch(server.url, tmp_path)


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (500, downloads.ATTEMPTS)])
def test_server_error_is_reported_and_leaves_no_file(server, tmp_path, status, times):
    server.statuses = [status] * 10
    with pytest.raises(UserError, match=rf"the test file .*{server.url}.*{status}.*Ask a friend\."):
        fetch(server.url, tmp_path)
    assert len(server.requests) == times
    assert os.listdir(tmp_path) == []


def test_rejects_web_page(server, tmp_path):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(UserError, match="web page"):
        fetch(server.url, tmp_path)
    assert not (tmp_path / "weights.npz").exists()


def test_rejects_other_size_before_download(server, tmp_path):
    with pytest.raises(UserError, match=r"3,145,728 bytes on the server instead of 3,145,729"):
        fetch(server.url, tmp_path, size=len(CONTENT) + 1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (204, {}, "the server answered 204"),
        (302, {}, "the server answered 302"),
        (302, {"Location": "http://[1"}, "Invalid"),
        (206, {"Content-Range": "bytes 0-4/5"}, "another part"),
        (200, {"Content-Length": "few"}, "'few'"),
        (200, {"Content-Length": "0"}, "it is empty"),
    ],
)
def test_rejects_answers_without_file(server, tmp_path, monkeypatch, status, headers, words):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(status, b"", headers))
    with pytest.raises(UserError, match=f"Cannot download the test file .*{words}"):
        fetch(server.url, tmp_path)
    assert os.listdir(tmp_path) == []


def test_never_writes_more_than_the_known_size(server, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        downloads.interrupts, "check", lambda: written.append(os.path.getsize(part))
    )
    part = tmp_path / "weights.npz.part"
    server.headers = {"Content-Length": None}
    with pytest.raises(UserError, match="the server sent more than 100,000 bytes"):
        fetch(server.url, tmp_path, size=100_000)
    assert 0 < max(written) <= 100_000
    assert os.listdir(tmp_path) == []


def test_discards_file_with_other_digest(server, tmp_path):
    with pytest.raises(UserError, match="SHA-256"):
        fetch(server.url, tmp_path, sha256="0" * 64)
    assert os.listdir(tmp_path) == []


def test_discards_file_that_fails_check(server, tmp_path):
    seen = []

    def check(part):
        seen.append(part.read_bytes())
        return "it is not a model"

    with pytest.raises(UserError, match="it is not a model, so the download was deleted"):
        fetch(server.url, tmp_path, check=check)
    assert seen == [CONTENT]
    assert os.listdir(tmp_path) == []


def test_rejects_existing_file_of_wrong_size(server, tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"mine")
    with pytest.raises(
        UserError, match=r"weights\.npz has 4 bytes instead of 3,145,728. Delete it"
    ):
        fetch(server.url, tmp_path, size=len(CONTENT))
    assert (tmp_path / "weights.npz").read_bytes() == b"mine"
    assert fetch(server.url, tmp_path).read_bytes() == b"mine"
    assert server.requests == []


def test_offline_error_says_what_to_do(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.npz"
        with pytest.raises(UserError, match=r"no connection to 127\.0\.0\.1\). Ask a friend"):
            fetch(url, tmp_path)
    assert os.listdir(tmp_path) == []


def test_reports_insufficient_disk_space_before_download(server, tmp_path, monkeypatch):
    usage = downloads.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs 3,145,728 more bytes .* only 1,000 are free"):
        fetch(server.url, tmp_path)
    assert not (tmp_path / "weights.npz").exists()


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_reports_full_disk(server, tmp_path):
    (tmp_path / "weights.npz.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left on device\). Make room and"):
        fetch(server.url, tmp_path)
    assert not (tmp_path / "weights.npz").exists()


def test_reports_folder_that_cannot_be_created(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write the test file"):
        fetch(server.url, tmp_path / "file" / "folder")


def test_resumes_after_kill(server, tmp_path):
    server.pause = 0.05
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(
        target=downloads.fetch,
        args=(server.url, tmp_path / "weights.npz"),
        kwargs={"label": "x", "instructions": "y"},
    )
    process.start()
    part = tmp_path / "weights.npz.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    have = part.stat().st_size
    assert 0 < have < len(CONTENT)
    assert not (tmp_path / "weights.npz").exists()
    server.pause = 0.0
    assert fetch(server.url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == f"bytes={have}-"


def test_concurrent_calls_download_once(server, tmp_path):
    server.pause = 0.005
    spawn = multiprocessing.get_context("spawn")
    call = functools.partial(downloads.fetch, label="x", instructions="y", sha256=SHA256)
    processes = [
        spawn.Process(target=call, args=(server.url, tmp_path / "weights.npz")) for _ in range(3)
    ]
    for process in processes:
        process.start()
    threads = [threading.Thread(target=fetch, args=(server.url, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for worker in (*threads, *processes):
        worker.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "weights.npz").read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert os.listdir(tmp_path) == ["weights.npz"]
