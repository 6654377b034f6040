import http.server
import io
import pathlib
import runpy
import threading

import numpy as np
import pytest

from zsad_jax import downloads
from zsad_jax.backbones import released
from zsad_jax.errors import UserError

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "download_weights.py"


def npz_bytes(count):
    buffer = io.BytesIO()
    np.savez(buffer, **{f"a{i}": np.zeros(1) for i in range(count)})
    return buffer.getvalue()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server in place of the published one; its `files` are what it has."""
    monkeypatch.setenv("ZSAD_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            body = self.server.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked = {"/v1_0/checkpoints/tokenizer.model": b"pieces"}, []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(released, "BASE_URL", base)
        monkeypatch.setattr(released, "TOKENIZER_URL", f"{base}/v1_0/checkpoints/tokenizer.model")
        yield server
        server.shutdown()


def test_a_name_becomes_three_files_fetched_once(published):
    stem = "/v1_0/checkpoints/scenic/tips_oss_s14_highres_distilled"
    published.files |= {f"{stem}_vision.npz": npz_bytes(198), f"{stem}_text.npz": npz_bytes(196)}
    missing = released.missing_files("tips-s14-hr")
    assert len(missing) == 3
    found = released.locate("tips-s14-hr")
    assert sorted(found) == sorted(missing)
    assert found.tokenizer.read_bytes() == b"pieces"
    assert released.missing_files("tips-s14-hr") == []
    assert released.locate("tips-s14-hr") == found
    assert len(published.asked) == 3
    assert len(released.missing_files("tips-s14-hr", "pytorch")) == 2


def test_the_second_file_name_is_tried_when_the_first_is_not_there(published):
    stem = "/v2_0/checkpoints/scenic/tips_v2_so400m14"
    counts = {"vision": 16 * 27 + 6, "text": 16 * 27 + 4}
    published.files |= {f"{stem}_{side}.npz": npz_bytes(n) for side, n in counts.items()}
    found = released.locate("tipsv2-so400m14")
    assert found.vision.name == "tips_v2_so400m14_vision.npz"
    assert released.missing_files("tipsv2-so400m14") == []


def test_a_file_with_another_number_of_arrays_is_thrown_away(published, tmp_path):
    stem = "/v1_0/checkpoints/scenic/tips_oss_s14_highres_distilled"
    published.files[f"{stem}_vision.npz"] = npz_bytes(10)
    with pytest.raises(UserError, match="10 arrays instead of 198"):
        released.locate("tips-s14-hr")
    published.files[f"{stem}_vision.npz"] = b"not an npz"
    with pytest.raises(UserError, match="not an npz"):
        released.locate("tips-s14-hr")
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_a_missing_file_says_what_to_put_where(published, tmp_path):
    place = tmp_path / "home/weights/tips/native/tips_oss_l14_highres_distilled_vision.npz"
    with pytest.raises(UserError, match=rf"vision tower of tips-l14-hr .*404.* put it at {place}"):
        released.locate("tips-l14-hr")


def test_array_counts_are_those_of_the_published_files():
    counts = {
        name: release.count_arrays("native", "vision")
        for name, release in released.RELEASES.items()
    }
    assert counts["tips-b14-hr"] == 198
    assert counts["tips-l14-hr"] == counts["tipsv2-l14"] == 390
    assert counts["tips-so400m14-hr"] == 438
    assert counts["tips-g14-lr"] == 726
    assert released.RELEASES["tips-l14-hr"].count_arrays("pytorch", "vision") == 344
    assert released.RELEASES["tips-l14-hr"].count_arrays("native", "text") == 196


def test_unknown_names_and_lineages_are_one_sentence():
    with pytest.raises(UserError, match="known are tips-s14-hr, "):
        released.locate("tips-l14")
    with pytest.raises(UserError, match="native, pytorch"):
        released.locate("tips-l14-hr", "torch")


def test_the_shipped_model_lies_in_the_package():
    found = released.locate("tips-nano")
    assert found.vision.name == "tips_nano_vision.npz"
    assert found.text.parent == found.tokenizer.parent == released.ASSETS / "tips-nano"


def test_the_command_of_an_error_message_works(published, capsys):
    stem = "/v1_0/checkpoints/pytorch/tips_oss_s14_highres_distilled"
    published.files |= {f"{stem}_vision.npz": npz_bytes(176), f"{stem}_text.npz": npz_bytes(148)}
    command = released.fetch_command("tips-s14-hr", "pytorch").split()
    assert command[:2] == ["python", "scripts/download_weights.py"]
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main(command[2:]) == 0
    assert released.missing_files("tips-s14-hr", "pytorch") == []
    assert main(["--list"]) == 0
    assert "tipsomaly-l14-hr-visa-epoch2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["nonsense"])
    assert end.value.code == 2
    assert "'nonsense' is unknown" in capsys.readouterr().err
