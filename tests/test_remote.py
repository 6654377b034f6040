"""Tests of paths in Google Cloud Storage, on a stand-in for it that epath finds through fsspec."""

import datetime
import io
import json
import os
import pathlib
import re
import shutil
from concurrent import futures

import fsspec
import numpy as np
import PIL.Image
import pytest
from etils import epath

from zsad_jax import data, main
from zsad_jax.backbones import load_backbone
from zsad_jax.backbones.__main__ import main as backbones_command
from zsad_jax.backbones.registry import ASSETS
from zsad_jax.data.__main__ import main as data_command
from zsad_jax.data.folder import find_images
from zsad_jax.experiment import run as runner
from zsad_jax.report.__main__ import main as report
from zsad_jax.train import OrbaxSaver
from zsad_jax.utils import files, remote
from zsad_jax.utils.errors import NotPreparedError, UserError

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{
        "method": {{"name": "clip", "sigma": 1.0}},
        "backbone": {{
            "name": "tips", "image_size": 42, "vision": "{place}/weights/tips_nano_vision.npz",
            "text": "{place}/weights/tips_nano_text.npz", "tokenizer": "{place}/weights/tokenizer.model",
        }},
        "targets": ("target", {{"folder": "{place}/parts"}}), "auxiliary": "auxiliary", "train": False,
        "training": {{"epochs": 2, "batch_size": 8}}, "batch_size": 4, "num_workers": 0,
        "data_dir": "{place}/data",
    }})
"""


class Bucket(fsspec.AbstractFileSystem):
    """Objects in memory, which appear when they are closed; only `bucket` exists."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, objects, **options):
        super().__init__(**options)
        self.objects, self.reads, self.writes = objects, [], []
        self.calls, self.fault = {}, None

    def put(self, name, content, seconds=1):
        time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        self.objects[name] = content, time

    def ls(self, path, detail=True, **_):
        if self.fault:
            raise self.fault
        path = self._strip_protocol(path)
        found = {}
        for name, (content, time) in self.objects.items():
            if name == path:
                found[name] = {"size": len(content), "type": "file", "mtime": time}
            elif name.startswith(f"{path}/"):
                below = f"{path}/{name[len(path) + 1 :].split('/')[0]}"
                file = {"size": len(content), "type": "file", "mtime": time}
                found[below] = file if below == name else {"size": 0, "type": "directory"}
        if not found:
            raise FileNotFoundError(path)
        return [{"name": n, **one} for n, one in found.items()] if detail else list(found)

    def info(self, path, **_):
        path = self._strip_protocol(path)
        found = self.ls(path)
        return found[0] if found[0]["name"] == path else {"name": path, "type": "directory"}

    def _open(self, path, mode="rb", **_):
        bucket, objects = self, self.objects
        if mode == "rb":
            self.reads.append(path)
            return io.BytesIO(objects[path][0])
        if not path.startswith("bucket/"):
            raise FileNotFoundError(path)

        class Upload(io.BytesIO):
            def write(self, content):
                bucket.calls[path] = bucket.calls.get(path, 0) + 1
                return super().write(content)

            def close(self):
                if not self.closed:
                    bucket.writes.append(path)
                    bucket.put(path, self.getvalue(), len(bucket.writes) + 1)
                super().close()

        return Upload()

    def rm_file(self, path):
        del self.objects[self._strip_protocol(path)]

    _rm = rm_file

    def below(self, folder):
        start = f"{folder}/"
        found = (name for name in self.objects if name.startswith(start))
        return {name.removeprefix(start): self.objects[name][0] for name in found}


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Returns a stand-in for Google Cloud Storage; nothing may be written to a local folder "gs:"."""
    made = Bucket({})
    find = {"gcs": made, "file": fsspec.filesystem("file")}.get
    monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", find)
    monkeypatch.chdir(tmp_path)
    yield made
    assert not list(tmp_path.rglob("gs:*"))


def png(seed, *shape):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 2, shape, np.uint8) * 255
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_dataset(number):
    """Returns the files of a dataset with a meta.json."""
    found, entries = {}, []
    for i in range(8):
        found[f"{i}.png"] = png(i + number, 40, 40, 3)
        entry = {"img_path": f"{i}.png", "mask_path": "", "cls_name": "part", "anomaly": i % 2}
        if i % 2:
            entry["mask_path"] = f"{i}_mask.png"
            found[entry["mask_path"]] = png(i, 40, 40)
        entries.append(entry)
    return found | {"meta.json": json.dumps({"test": {"part": entries}}).encode()}


@pytest.fixture
def inputs(bucket, tmp_path):
    """Writes data and weights to the bucket, and to a local folder, which is returned."""
    parts = {f"{kind}/{i}.png": png(i, 40, 40, 3) for i in range(2) for kind in ("good", "bad")}
    names = ("tips_nano_vision.npz", "tips_nano_text.npz", "tokenizer.model")
    weights = {name: (ASSETS / "tips-nano" / name).read_bytes() for name in names}
    trees = {"data/auxiliary": make_dataset(0), "data/target": make_dataset(9)}
    for folder, tree in (trees | {"parts": parts, "weights": weights}).items():
        for name, content in tree.items():
            bucket.put(f"bucket/{folder}/{name}", content)
            path = tmp_path / "inputs" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (1, 1))  # as in the bucket
    return tmp_path / "inputs"


@pytest.fixture
def run(tmp_path, run_app, monkeypatch, capsys):
    """Returns a function that runs the main command, and returns the exit code and stderr."""
    monkeypatch.setattr(main, "log_plainly", lambda: None)

    def call(place, workdir, *arguments):
        (tmp_path / "config.py").write_text(CONFIG.format(place=place))
        argv = ["main", f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}", *arguments]
        return run_app(main.main, "zsad_jax.main", argv), capsys.readouterr().err

    return call


def outputs(workdir):
    found = (path for path in workdir.rglob("*") if path.is_file())
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in found}


def test_results_of_remote_paths_equal_those_of_local_ones(
    bucket, inputs, run, tmp_path, home, monkeypatch
):
    assert run(inputs, tmp_path / "run") == (0, "")
    given = sorted(name for name in bucket.objects if "auxiliary" not in name)
    assert run("gs://bucket", "gs://bucket/run") == (0, "")
    local, stored = outputs(tmp_path / "run"), bucket.below("bucket/run")
    assert {one.partition("/")[0] for one in stored} == {one.partition("/")[0] for one in local}
    assert len(stored) == len(local)
    for name in ("results.json", "comparisons.json", "results.md"):
        assert stored[name] == local[name]
    # Another machine reads what is stored; this one has the inputs, each of which it has copied once.
    shutil.rmtree(home / "remote/runs")
    monkeypatch.setattr(runner, "evaluate", None)
    assert run("gs://bucket", "gs://bucket/run") == (0, "")
    assert bucket.below("bucket/run")["results.json"] == local["results.json"]
    assert sorted(name for name in bucket.reads if "/run/" not in name) == given
    code, error = run("gs://bucket", "gs://bucket/run", "--config.method.sigma=2")
    assert code == 2
    assert "gs://bucket/run has the results of another setting" in error
    assert "--workdir gs://bucket/run-sigma=2, or delete gs://bucket/run/config.json" in error


def test_resumes_after_a_kill_on_another_machine(bucket, inputs, run, tmp_path, monkeypatch):
    trained = (
        "--config.method.name=tipsomaly",
        "--config.train=True",
        "--config.targets=('target',)",
    )
    assert run(inputs, tmp_path / "run", *trained) == (0, "")
    save, epochs = OrbaxSaver.save, []

    def save_and_die(saver, epoch, state):
        save(saver, epoch, state)
        epochs.append(epoch)
        if len(epochs) == 1:
            raise SystemExit(9)

    monkeypatch.setattr(OrbaxSaver, "save", save_and_die)
    assert run("gs://bucket", "gs://bucket/run", *trained)[0] == 9
    assert "results.json" not in bucket.below("bucket/run")
    monkeypatch.setenv("ZSAD_JAX_HOME", str(tmp_path / "another machine"))
    assert run("gs://bucket", "gs://bucket/run", *trained) == (0, "")
    assert epochs == [1, 2]
    local, stored = outputs(tmp_path / "run"), bucket.below("bucket/run")
    for name in ("results.json", "comparisons.json"):
        assert stored[name] == local[name]


def test_stores_whole_files_in_the_order_of_writing(bucket, tmp_path):
    with remote.open_workdir("gs://bucket/run", (), "--workdir") as place:
        for name in ("b.json", "a.json"):
            files.write_json(place.local / name, list(range(9)))
        place.push()
        (place.local / "b.json").unlink()
    names = [name.removeprefix("bucket/run/") for name in bucket.writes]
    assert names == [files.LOCK, "b.json", "a.json"]
    assert {*bucket.below("bucket/run")} == {files.LOCK, "a.json"}
    assert bucket.calls == dict.fromkeys(bucket.writes, 1)


def test_remote_directory_is_the_truth(bucket, home):
    with remote.open_workdir("gs://bucket/run", (), "--workdir") as place:
        (place.local / "stored").write_text("1")
    (place.local / "lost").write_text("2")
    bucket.put("bucket/run/stored", b"3", 99)
    with remote.open_workdir("gs://bucket/run", (), "--workdir") as place:
        assert (place.local / "stored").read_text() == "3"
        assert not (place.local / "lost").exists()


def test_copies_of_a_parent_folder_leave_a_run_alone(bucket):
    bucket.put("bucket/all/image.png", b"1")
    with remote.open_workdir("gs://bucket/all/run", (), "--workdir") as place:
        (place.local / "result").write_text("2")
        folder = pathlib.Path(remote.fetch("gs://bucket/all"))
        assert (place.local / "result").read_text() == "2"
    assert bucket.below("bucket/all/run")["result"] == b"2"
    assert (folder / "image.png").read_bytes() == b"1"


def test_removes_only_what_the_bucket_does_not_have(bucket):
    bucket.put("bucket/tree/a", b"a")
    bucket.put("bucket/tree/b/c", b"c")
    folder = pathlib.Path(remote.fetch("gs://bucket/tree"))
    kept = (folder / "a").stat().st_ino
    del bucket.objects["bucket/tree/b/c"]
    bucket.put("bucket/tree/b", b"now a file")
    remote.fetch("gs://bucket/tree")
    assert (folder / "b").read_bytes() == b"now a file"
    assert (folder / "a").stat().st_ino == kept


def test_does_not_copy_its_own_results_again(bucket):
    for _ in range(2):
        with remote.open_workdir("gs://bucket/run", (), "--workdir") as place:
            (place.local / "result").write_text("1")
            place.push()
    assert "bucket/run/result" not in bucket.reads


def test_rejects_a_directory_of_the_user(bucket):
    bucket.put("bucket/mine/results.json", b"[]")
    with (
        pytest.raises(UserError, match="which was not written by zsad_jax"),
        remote.open_workdir("gs://bucket/mine", ["results.json"], "--workdir"),
    ):
        pass
    assert not bucket.writes


def test_copies_again_what_has_changed(bucket, home):
    for name in ("a", "b", "deep/c"):
        bucket.put(f"bucket/tree/{name}", name.encode())
    folder = pathlib.Path(remote.fetch("gs://bucket/tree/"))
    assert folder == home / "remote/inputs/bucket/tree"
    assert (folder / "deep/c").read_text() == "deep/c"
    assert (folder / "a").stat().st_mtime_ns == 10**9
    bucket.reads.clear()
    bucket.put("bucket/tree/a", b"A", 2)
    assert remote.fetch("gs://bucket/tree") == str(folder)
    assert (folder / "a").read_text() == "A"
    assert bucket.reads == ["bucket/tree/a"]
    del bucket.objects["bucket/tree/deep/c"]
    remote.fetch("gs://bucket/tree")
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "b"]
    assert pathlib.Path(remote.fetch("gs://bucket/tree/b")).read_text() == "b"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            ImportError("Install gcsfs"),
            r'\(Install gcsfs\). Install the extra gcs: pip install "zsad-jax\[gcs\]"',
        ),
        (OSError("Forbidden: 403\nno access"), r"\(Forbidden: 403 no access\). Check the path"),
        (RuntimeError(), r"\(RuntimeError\(\)\). Check the path"),
    ],
)
def test_reports_a_fault_of_the_storage(bucket, run, fault, words):
    bucket.fault = fault
    with pytest.raises(UserError, match=f"^Cannot read gs://bucket/data/mvtec_ad {words}"):
        data.open_dataset("mvtec_ad", "gs://bucket/data")
    code, error = run("gs://bucket", "gs://bucket/run")
    assert code == 2
    assert re.fullmatch(f"error: Cannot read gs://bucket/run {words}.*\n", error)


def test_rejects_a_missing_bucket_before_any_work(bucket, inputs, run, monkeypatch):
    monkeypatch.setattr(main, "run_experiment", None)
    code, error = run("gs://bucket", "gs://nowhere/run")
    assert code == 2
    words = r"error: Cannot copy \S+ to gs://nowhere/run \(it does not exist\)\. .*\n"
    assert re.fullmatch(words, error)


def test_missing_dataset_and_weights(bucket):
    words = r"not prepared in gs://bucket/data. Prepare it in .*/data, and copy the folder mvtec_ad"
    with pytest.raises(NotPreparedError, match=words):
        data.open_dataset("mvtec_ad", "gs://bucket/data")
    with pytest.raises(UserError, match=r"Cannot read gs://bucket/x \(it does not exist\)"):
        data.open_dataset({"folder": "gs://bucket/x"}, "data")
    with pytest.raises(UserError, match=r"Cannot read gs://bucket/x.npz \(it does not exist\)"):
        load_backbone("clip", weights="gs://bucket/x.npz")


def test_finds_remote_images(inputs, home):
    found = find_images(["gs://bucket/parts/bad", "gs://bucket/parts/good/0.png"])
    places = [pathlib.Path(path) for path in found.images]
    assert all(place.is_relative_to(home / "remote/inputs") for place in places)
    assert [place.name for place in places] == ["0.png", "1.png", "0.png"]
    contents = [
        (inputs / "parts" / name).read_bytes() for name in ("bad/0.png", "bad/1.png", "good/0.png")
    ]
    assert [place.read_bytes() for place in places] == contents


def test_commands_read_remote_folders(inputs, capsys):
    data_command(["verify", "gs://bucket/parts"])
    assert "parts: all files can be read" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        report(["gs://bucket/parts"])
    assert "remote/inputs/bucket/parts has no results.json" in capsys.readouterr().err


def test_one_of_several_processes_copies(bucket, inputs):
    bucket.reads.clear()
    with futures.ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(remote.fetch, ["gs://bucket/parts"] * 4))) == 1
    assert len(bucket.reads) == 4


def test_one_run_uses_a_directory(bucket):
    def lock():
        return remote.open_workdir("gs://bucket/run", (), "--workdir")

    with lock(), pytest.raises(UserError, match="in use by another process"), lock():
        pass


@pytest.mark.parametrize(
    "path", ["s3://bucket/run", "https://host/run", "GS://bucket/run", "gs:/bucket/run"]
)
def test_rejects_other_addresses(bucket, run, path):
    code, error = run("gs://bucket", path)
    assert code == 2
    assert f"--workdir is '{path}'. Expected a local path or gs://BUCKET/PATH." in error


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (report, ["runs", "--out", "gs://bucket/x"]),
        (data_command, ["list", "--data_dir", "gs://bucket/x"]),
        (data_command, ["prepare", "mvtec_ad", "--source", "gs://bucket/x"]),
        (data_command, ["show", "synthetic_target", "--out", "gs://bucket/x"]),
        (backbones_command, ["convert", "gs://bucket/x", "out.npz"]),
        (data_command, ["list"]),
    ],
)
def test_commands_name_the_paths_that_must_be_local(monkeypatch, capsys, command, arguments):
    if len(arguments) == 1:
        monkeypatch.setenv("ZSAD_JAX_HOME", "gs://bucket/x")
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    assert ended.value.code == 2
    assert "'gs://bucket/x'. Expected a local path. Name a local one" in capsys.readouterr().err
