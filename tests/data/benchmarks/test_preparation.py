import csv
import dataclasses
import errno
import hashlib
import http.server
import io
import os
import pathlib
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data import __main__ as command
from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks import builders, records, sources
from zsad_jax.data.benchmarks.builders import BUILDERS
from zsad_jax.data.benchmarks.counts import compare_counts
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.listing import Listing
from zsad_jax.data.benchmarks.prepared import PreparedDataset
from zsad_jax.data.dataset import Sample
from zsad_jax.data.open import open_dataset
from zsad_jax.data.preprocess import decode_mask, open_image
from zsad_jax.utils import downloads, files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.threads import map_in_threads

ROOT = pathlib.Path(__file__).parents[3]


def run(*arguments):
    """Returns a function that runs the command and returns its exit code."""
    try:
        return command.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSAD_JAX_HOME", str(tmp_path / "home"))


def draw(seed, *, mode="RGB", size=(12, 9)):
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(pixels)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def mask_of(seed, *, values=(0, 255), size=(12, 9)):
    pixels = np.random.default_rng(seed).choice(values, (size[1], size[0])).astype(np.uint8)
    pixels[0, 0] = max(values)
    return Image.fromarray(pixels)


@pytest.fixture
def mvtec_folder(tmp_path):
    """Writes a small mvtec_anomaly_detection with two categories, one of them gray."""
    root = tmp_path / "official" / "mvtec_anomaly_detection"
    for category, mode in (("bottle", "RGB"), ("metal_nut", "L")):
        folder = root / category
        for i in range(3):
            save(draw(i, mode=mode), folder / f"train/good/{i:03}.png")
        for i in range(2):
            save(draw(10 + i, mode=mode), folder / f"test/good/{i:03}.png")
            save(draw(20 + i, mode=mode), folder / f"test/broken_large/{i:03}.png")
            save(mask_of(i), folder / f"ground_truth/broken_large/{i:03}_mask.png")
        save(draw(30, mode=mode), folder / "test/combined/000.png")
        save(mask_of(9), folder / "ground_truth/combined/000_mask.png")
        (folder / "license.txt").write_text("terms")
        (folder / "test/good/.DS_Store").write_text("x")
    return root


@pytest.fixture
def visa_folder(tmp_path):
    """Writes a small VisA with two categories and masks of several classes."""
    root = tmp_path / "official" / "VisA_20220922"
    rows = []
    for category in ("candle", "pipe_fryum"):
        for i in range(4):
            name = f"{category}/Data/Images/Normal/{i:04}.JPG"
            save(draw(i), root / name)
            rows.append([category, "train" if i < 2 else "test", "normal", name, ""])
        for i in range(3):
            name = f"{category}/Data/Images/Anomaly/{i:03}.JPG"
            mask = f"{category}/Data/Masks/Anomaly/{i:03}.png"
            save(draw(40 + i), root / name)
            save(mask_of(i, values=(0, 1, 2, 5)), root / mask)
            rows.append([category, "test", "anomaly", name, mask])
    (root / "split_csv").mkdir()
    with open(root / "split_csv/1cls.csv", "w", newline="") as file:
        csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])
    return root


def pack(folder, path, mode):
    """Packs a folder's contents (VisA's archive has no top folder) or the folder itself."""
    with tarfile.open(path, mode) as archive:
        for one in sorted(folder.iterdir()):
            archive.add(one, one.relative_to(folder.parent if "xz" in mode else folder))
    return path


@pytest.fixture
def with_digest(change_facts):
    """Sets the digest of a benchmark's archive to that of a file."""

    def change(name, path, **changes):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        change_facts(name, archives=lambda known: [known[0]._replace(sha256=digest, **changes)])

    return change


@pytest.fixture
def mvtec_archive(mvtec_folder, tmp_path, with_digest):
    path = pack(mvtec_folder, tmp_path / "mvtec_anomaly_detection.tar.xz", "w:xz")
    with_digest("mvtec_ad", path)
    return path


def prepare(name, data_dir, **options):
    BUILDERS[name](data_dir=data_dir).download_and_prepare(**options)
    return PreparedDataset(name, data_dir)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def check_mvtec(dataset, root):
    assert dataset.categories == ("bottle", "metal_nut")
    assert dataset.prompt_names == ("bottle", "metal nut")
    names = [dataset[i].file_name for i in range(len(dataset))]
    kinds = ("broken_large/000", "broken_large/001", "combined/000", "good/000", "good/001")
    assert names == [f"{c}/test/{k}.png" for c in dataset.categories for k in kinds]
    for sample in (dataset[i] for i in range(len(dataset))):
        category, _, defect, file = sample.file_name.split("/")
        assert (sample.category, sample.defect) == (category, defect)
        assert sample.prompt_name == category.replace("_", " ")
        assert sample.label == int(defect != "good")
        assert sample.has_mask
        assert (sample.subject, sample.slice) == ("", -1)
        assert sample.image == (root / sample.file_name).read_bytes()
        if sample.label:
            mask = root / category / "ground_truth" / defect / file.replace(".png", "_mask.png")
            np.testing.assert_array_equal(
                decode_mask(sample.mask), np.asarray(Image.open(mask)) > 0
            )
        else:
            assert sample.mask is None


def test_prepares_mvtec_from_archive_folder_and_parents(mvtec_archive, mvtec_folder, tmp_path):
    for index, source in enumerate([mvtec_archive, mvtec_folder, tmp_path / "official"]):
        dataset = prepare("mvtec_ad", tmp_path / f"data{index}", source=source)
        check_mvtec(dataset, mvtec_folder)
        assert dataset.issues == ()
        assert sorted(os.listdir(tmp_path / f"data{index}/mvtec_ad")) == [".zsad_jax.lock", "1.0.0"]
    elsewhere = tmp_path / "downloaded"
    elsewhere.mkdir()
    mvtec_archive.rename(elsewhere / mvtec_archive.name)
    check_mvtec(prepare("mvtec_ad", tmp_path / "data9", source=elsewhere), mvtec_folder)


def test_prepares_training_split(mvtec_folder, tmp_path):
    prepare("mvtec_ad", tmp_path / "data", source=mvtec_folder)
    train = PreparedDataset("mvtec_ad", tmp_path / "data", "train")
    assert len(train) == 6
    assert {train[i].label for i in range(6)} == {0}
    with pytest.raises(UserError, match=r"no split 'val'\. Available:"):
        PreparedDataset("mvtec_ad", tmp_path / "data", "val")


def test_prepared_dataset_can_be_pickled(mvtec_folder, tmp_path):
    dataset = prepare("mvtec_ad", tmp_path / "data", source=mvtec_folder)
    first = dataset[0]
    assert pickle.loads(pickle.dumps(dataset))[np.int64(0)] == first


def test_preparation_does_not_depend_on_threads(mvtec_folder, tmp_path):
    records = []
    for workers in (1, 4):
        prepare("mvtec_ad", tmp_path / str(workers), source=mvtec_folder, num_workers=workers)
        folder = tmp_path / str(workers) / "mvtec_ad" / "1.0.0"
        records.append({path.name: path.read_bytes() for path in folder.glob("*.array_record*")})
    assert len(records[0]) == 2
    assert records[0] == records[1]


def test_tensorflow_datasets_reads_it_alone(mvtec_folder, tmp_path):
    """Reads it in a new process without tensorflow, from the default folder."""
    prepare("mvtec_ad", benchmarks.default_data_dir(), source=mvtec_folder)
    script = (
        "import sys, tensorflow_datasets as tfds, zsad_jax.data.benchmarks.builders\n"
        "source = tfds.data_source('mvtec_ad', split='test')\n"
        "record = source[3]\n"
        "print(len(source), record['image'].shape, record['mask'].shape, record['mask'].max())\n"
        "print(record['label'], record['has_mask'], 'tensorflow' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == ["10 (9, 12, 3) (9, 12, 1) 0", "0 True False"], result


def test_visa_uses_official_split(visa_folder, tmp_path, with_digest):
    archive = pack(visa_folder, tmp_path / "VisA_20220922.tar", "w")
    with_digest("visa", archive)
    dataset = prepare("visa", tmp_path / "data", source=archive)
    assert dataset.categories == ("candle", "pipe_fryum")
    assert dataset.prompt_names == ("candle", "pipe fryum")
    samples = [dataset[i] for i in range(len(dataset))]
    assert [sample.label for sample in samples] == [0, 0, 1, 1, 1] * 2
    for sample in samples:
        assert sample.has_mask
        np.testing.assert_array_equal(
            np.asarray(open_image(sample.image).image.convert("RGB")),
            pixels(visa_folder / sample.file_name),
        )
        if sample.label:
            name = sample.file_name.replace("Images", "Masks").replace(".JPG", ".png")
            expected = np.asarray(Image.open(visa_folder / name)) != 0
            np.testing.assert_array_equal(decode_mask(sample.mask), expected)
            assert sample.defect == ""
    assert len(PreparedDataset("visa", tmp_path / "data", "train")) == 4


@pytest.fixture
def visa_server(visa_folder, tmp_path, monkeypatch, with_digest):
    """Serves the archive from a local server under the benchmark's URL."""
    content = pack(visa_folder, tmp_path / "served.tar", "w").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.count += 1
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.status, server.count = content, 200, 0
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/VisA_20220922.tar"
        with_digest("visa", tmp_path / "served.tar", url=url)
        monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
        yield server
        server.shutdown()


def test_downloads_visa_once(visa_server, tmp_path, capsys):
    assert run("prepare", "visa", "--data_dir", tmp_path / "data") == 0
    assert run("prepare", "visa", "--data_dir", tmp_path / "data") == 0
    assert visa_server.count == 1
    printed = capsys.readouterr().out
    assert "is already prepared" in printed
    assert "test/candle: 2 normal and 3 anomalous images instead of 100 and 100" in printed
    assert len(PreparedDataset("visa", tmp_path / "data")) == 10


def test_rejects_other_archive_from_server(visa_server, tmp_path, capsys):
    visa_server.content = visa_server.content[:-1] + b"x"
    assert run("prepare", "visa", "--data_dir", tmp_path / "data") == 2
    assert "SHA-256" in capsys.readouterr().err
    visa_server.status = 404
    assert run("prepare", "visa", "--data_dir", tmp_path / "data") == 2
    place = tmp_path / "data" / "downloads" / "VisA_20220922.tar"
    assert (
        f"404 Not Found). Download it in another way and save it as {place}"
        in capsys.readouterr().err
    )
    assert not benchmarks.is_prepared("visa", tmp_path / "data")
    assert not [path for path in (tmp_path / "data/downloads").iterdir() if path.is_file()]


def test_missing_mvtec_source_error_says_what_to_download(tmp_path, capsys):
    assert run("prepare", "mvtec_ad", "--data_dir", tmp_path / "data") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "mvtec_anomaly_detection.tar.xz (4.9 GB) from https://www.mvtec.com" in message
    assert "--source" in message


@pytest.mark.parametrize("kind", ["missing", "empty folder", "a category", "no archive", "other"])
def test_rejects_wrong_source(kind, tmp_path, mvtec_folder, with_digest, capsys):
    source = tmp_path / "source"
    if kind == "empty folder":
        source.mkdir()
    elif kind == "a category":
        source = mvtec_folder / "bottle"
    elif kind == "no archive":
        source.write_text("<html>login</html>")
        with_digest("mvtec_ad", source)
    elif kind == "other":
        (tmp_path / "else").mkdir()
        (tmp_path / "else" / "readme.txt").write_text("x")
        pack(tmp_path / "else", source, "w")
        with_digest("mvtec_ad", source)
    assert run("prepare", "mvtec_ad", "--data_dir", tmp_path / "d", "--source", source) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(source) in message
    assert not benchmarks.is_prepared("mvtec_ad", tmp_path / "d")
    assert not (tmp_path / "d" / "mvtec_ad").exists()


def test_rejects_other_and_truncated_archives(mvtec_archive, tmp_path, with_digest):
    good = mvtec_archive.read_bytes()
    mvtec_archive.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match=r"tar\.xz is not the published archive .*SHA-256"):
        prepare("mvtec_ad", tmp_path / "data", source=mvtec_archive)
    with_digest("mvtec_ad", mvtec_archive)
    with pytest.raises(UserError, match=r"tar\.xz is damaged"):
        prepare("mvtec_ad", tmp_path / "data", source=mvtec_archive)
    with_digest("mvtec_ad", mvtec_archive, size=len(good))
    with pytest.raises(UserError, match=f"bytes instead of {len(good):,}"):
        prepare("mvtec_ad", tmp_path / "data", source=mvtec_archive)
    assert not benchmarks.is_prepared("mvtec_ad", tmp_path / "data")


def test_rejects_truncated_and_encrypted_zip_archives(tmp_path, make_miniature):
    make_miniature("kvasir", tmp_path / "official")
    path = tmp_path / "kvasir-seg.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for one in sorted((tmp_path / "official").rglob("*.jpg")):
            archive.write(one, one.relative_to(tmp_path / "official"))
    whole = path.read_bytes()
    with pytest.raises(
        UserError, match=r"is not the published archive .* bytes instead of 46,227,172"
    ):
        prepare("kvasir", tmp_path / "data", source=path)
    kvasir = DATASETS["kvasir"]
    plain = (kvasir.archives[0]._replace(sha256=None, size=None),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "kvasir", dataclasses.replace(kvasir, archives=plain))
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="damaged or not a tar or zip archive"):
            prepare("kvasir", tmp_path / "data", source=path)
        locked = bytearray(whole)
        for start in (whole.index(b"PK\x03\x04") + 6, whole.index(b"PK\x01\x02") + 8):
            locked[start] |= 1  # the encryption flag
        path.write_bytes(locked)
        with pytest.raises(UserError, match="password"):
            prepare("kvasir", tmp_path / "data", source=path)
        assert not benchmarks.is_prepared("kvasir", tmp_path / "data")
        path.write_bytes(whole)
        assert len(prepare("kvasir", tmp_path / "data", source=path)) == 3
    assert sorted(os.listdir(tmp_path / "data/kvasir")) == [".zsad_jax.lock", "1.0.0"]


def hostile_archives():
    """Returns malicious members: (name in the archive, fields to set, expected message)."""
    link, hard = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
    return {
        "above": ("../../escaped.txt", {}, "outside"),
        "absolute": ("/tmp/escaped.txt", {}, "outside"),
        "backslashes": ("..\\..\\escaped.txt", {}, "outside"),
        "link": ("bottle/escaped.txt", link | {"linkname": "../../../victim.txt"}, "link"),
        "hard link": ("bottle/escaped.txt", hard | {"linkname": "../../../victim.txt"}, "link"),
        "device": ("bottle/escaped.txt", {"type": tarfile.CHRTYPE}, "device"),
        "sparse": ("bottle/escaped.txt", {"size": 2**40}, "implausibly large"),
    }


@pytest.mark.parametrize("kind", hostile_archives())
def test_extracts_only_regular_files_below_its_folder(kind, tmp_path, with_digest):
    name, fields, message = hostile_archives()[kind]
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        for key, value in {"size": 1, **fields}.items():
            setattr(member, key, value)
        if kind == "sparse":  # header only: nothing may be written before it is rejected
            archive.fileobj.write(member.tobuf())
        else:
            archive.addfile(member, io.BytesIO(b"x"))
        archive.addfile(tarfile.TarInfo("bottle/escaped.txt/x"), io.BytesIO())
    with_digest("mvtec_ad", path)
    with pytest.raises(UserError, match=message):
        prepare("mvtec_ad", tmp_path / "data", source=path)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert victim.read_text() == "mine"
    assert not (tmp_path / "data/mvtec_ad").exists()


def test_rejects_zip_with_link(tmp_path, with_digest):
    path = tmp_path / "kvasir-seg.zip"
    link = zipfile.ZipInfo("Kvasir-SEG/images")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "../../..")
    with_digest("kvasir", path, size=None)
    with pytest.raises(UserError, match="link"):
        prepare("kvasir", tmp_path / "data", source=path)


def test_never_removes_folders_of_the_user(mvtec_folder, mvtec_archive, tmp_path):
    """Covers folders named like incomplete preparations without their mark, and a link to a marked one."""
    data, elsewhere = tmp_path / "data/mvtec_ad", tmp_path / "elsewhere"
    files.make_removable(elsewhere)
    for name in ("incomplete.backup", "incomplete.empty", sources.EXTRACTED):
        (data / name).mkdir(parents=True)
    for name in ("incomplete.backup", sources.EXTRACTED):
        (data / name / "mine.txt").write_text("mine")
    (data / "incomplete.ABC123_1.0.0").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(UserError, match=f"{sources.EXTRACTED} was not created by zsad_jax"):
        prepare("mvtec_ad", tmp_path / "data", source=mvtec_archive)
    check_mvtec(prepare("mvtec_ad", tmp_path / "data", source=mvtec_folder), mvtec_folder)
    assert (data / "incomplete.backup/mine.txt").read_text() == "mine"
    assert (data / "incomplete.empty").is_dir()
    assert elsewhere.is_dir()


def test_prepares_into_relative_data_dir(mvtec_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_mvtec(prepare("mvtec_ad", "data", source=mvtec_folder), mvtec_folder)
    monkeypatch.setenv("ZSAD_JAX_HOME", "home")
    assert run("prepare", "mvtec_ad", "--source", mvtec_folder) == 0
    assert (tmp_path / "home/data/mvtec_ad/1.0.0/dataset_info.json").is_file()


def test_planted_issues_are_reported_and_nothing_is_dropped(mvtec_folder, tmp_path, capsys):
    bottle = mvtec_folder / "bottle"
    whole = (bottle / "test/good/000.png").read_bytes()
    (bottle / "test/good/000.png").write_bytes(whole[: len(whole) // 2])
    (bottle / "ground_truth/broken_large/000_mask.png").unlink()
    save(mask_of(1), bottle / "ground_truth/broken_large/777_mask.png")
    save(mask_of(1, size=(5, 5)), bottle / "ground_truth/combined/000_mask.png")
    save(Image.new("L", (12, 9)), mvtec_folder / "metal_nut/ground_truth/combined/000_mask.png")
    (mvtec_folder / "metal_nut/ground_truth/broken_large/000_mask.png").write_text("no image")
    data = tmp_path / "data"
    assert run("prepare", "mvtec_ad", "--data_dir", data, "--source", mvtec_folder) == 0
    printed = capsys.readouterr().out
    for file_name, reason in [
        ("bottle/test/good/000.png", "damaged"),
        ("bottle/test/broken_large/000.png", "the mask is missing"),
        ("bottle/ground_truth/broken_large/777_mask.png", "the mask belongs to no image"),
        ("bottle/test/combined/000.png", "(5x5, the image 12x9)"),
        ("metal_nut/test/combined/000.png", "its mask is empty"),
        ("metal_nut/test/broken_large/000.png", "the mask cannot be read"),
    ]:
        assert [line for line in printed.splitlines() if file_name in line and reason in line], (
            file_name
        )
    assert "6 issues" in printed
    assert "train/zipper: 0 normal and 0 anomalous images instead of 240 and 0" in printed
    dataset = PreparedDataset("mvtec_ad", data)
    assert len(dataset) == 10
    assert len(dataset.issues) == 6
    assert dataset[0].label == 1
    assert not dataset[0].has_mask
    assert dataset[0].mask is None


def test_reports_visa_rows_without_files(visa_folder, tmp_path):
    (visa_folder / "candle/Data/Images/Normal/0003.JPG").unlink()
    (visa_folder / "candle/Data/Masks/Anomaly/001.png").unlink()
    save(mask_of(1), visa_folder / "candle/Data/Masks/Anomaly/900.png")
    dataset = prepare("visa", tmp_path / "data", source=visa_folder)
    assert len(dataset) == 9
    assert {issue.file: issue.kind for issue in dataset.issues} == {
        "candle/Data/Images/Normal/0003.JPG": "image_missing",
        "candle/Data/Images/Anomaly/001.JPG": "mask_missing",
        "candle/Data/Masks/Anomaly/900.png": "image_unused",
    }
    (visa_folder / "split_csv/1cls.csv").write_text("object;split\n1;2\n")
    with pytest.raises(UserError, match=r"1cls\.csv is not the official split of VisA"):
        prepare("visa", tmp_path / "data2", source=visa_folder)


SLOW_PREPARATION = """
import sys, time
from zsad_jax.data.benchmarks import builders

encode = builders.encode

def encode_slowly(*arguments):
    time.sleep(0.3)
    return encode(*arguments)

builders.encode = encode_slowly
builder = builders.BUILDERS["mvtec_ad"](data_dir=sys.argv[2])
builder.download_and_prepare(source=sys.argv[1])
"""


def test_killed_preparation_is_not_prepared(mvtec_archive, mvtec_folder, tmp_path):
    data = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PREPARATION, mvtec_folder, data], cwd=ROOT
    )
    deadline = time.monotonic() + 60
    while not list(data.glob("mvtec_ad/incomplete*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(UserError, match="by another process"):
        prepare("mvtec_ad", data, source=mvtec_folder)
    process.kill()
    process.wait()
    files.make_removable(data / "mvtec_ad" / sources.EXTRACTED)
    assert list(data.glob("mvtec_ad/incomplete*"))
    assert not list(data.glob("mvtec_ad/*/dataset_info.json"))
    assert not benchmarks.is_prepared("mvtec_ad", data)
    with pytest.raises(UserError, match="is not prepared in"):
        open_dataset("mvtec_ad", data)
    check_mvtec(prepare("mvtec_ad", data, source=mvtec_archive), mvtec_folder)
    assert sorted(os.listdir(data / "mvtec_ad")) == [".zsad_jax.lock", "1.0.0"]
    files.make_removable(data / "mvtec_ad" / sources.EXTRACTED)  # of a kill after the records
    assert run("prepare", "mvtec_ad", "--data_dir", data) == 0
    assert sorted(os.listdir(data / "mvtec_ad")) == [".zsad_jax.lock", "1.0.0"]


def test_reports_incomplete_copy(mvtec_folder, tmp_path):
    data = tmp_path / "data"
    prepare("mvtec_ad", data, source=mvtec_folder)
    place = data / "mvtec_ad/1.0.0"
    (place / "dataset_info.json").unlink()
    assert not benchmarks.is_prepared("mvtec_ad", data)
    with pytest.raises(UserError, match=f"{place} is an incomplete copy of MVTec AD. Delete it"):
        prepare("mvtec_ad", data, source=mvtec_folder)
    shutil.rmtree(place)
    check_mvtec(prepare("mvtec_ad", data, source=mvtec_folder), mvtec_folder)


def test_verify_rejects_missing_masks(mvtec_folder, tmp_path, change_facts, capsys):
    """Removes masks only, so that all counts match but pixel metrics cannot be computed."""
    counts = {"train": {"bottle": (3, 0), "metal_nut": (3, 0)}}
    counts["test"] = {"bottle": (2, 3), "metal_nut": (2, 3)}
    change_facts("mvtec_ad", counts=counts)
    data = tmp_path / "data"
    prepare("mvtec_ad", data, source=mvtec_folder)
    assert run("verify", "mvtec_ad", "--data_dir", data) == 0
    shutil.rmtree(mvtec_folder / "bottle/ground_truth")
    prepare("mvtec_ad", tmp_path / "lost", source=mvtec_folder)
    capsys.readouterr()
    assert run("verify", "mvtec_ad", "--data_dir", tmp_path / "lost") == 1
    assert "3 unusable samples; 3 issues" in capsys.readouterr().out
    assert run("list", "--data_dir", tmp_path / "lost") == 0
    assert "prepared, 3 issues" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_reports_damaged_records(damage, mvtec_folder, tmp_path, capsys):
    data = tmp_path / "data"
    prepare("mvtec_ad", data, source=mvtec_folder)
    records_file = next(data.glob("mvtec_ad/*/mvtec_ad-test.array_record*"))
    if damage == "gone":
        records_file.unlink()
    else:
        records_file.write_bytes(records_file.read_bytes()[:900])
    with pytest.raises(UserError, match=r"MVTec AD in .*1\.0\.0 is damaged .*prepare it again"):
        list(PreparedDataset("mvtec_ad", data))
    assert run("show", "mvtec_ad", "--data_dir", data, "--out", tmp_path / "sheet.png") == 2
    assert "prepare it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Not enough disk space. Needed: Unknown size"),
        RuntimeError("write() failed: No space left on device"),
    ],
)
def test_reports_full_disk(error, mvtec_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(builders, "write_split", fail)
    with pytest.raises(UserError, match=r"disk ran out of space .*mvtec_ad"):
        prepare("mvtec_ad", tmp_path / "data", source=mvtec_folder)
    assert not benchmarks.is_prepared("mvtec_ad", tmp_path / "data")


def test_reports_ignored_source(mvtec_folder, tmp_path, capsys):
    data = tmp_path / "data"
    prepare("mvtec_ad", data, source=mvtec_folder)
    assert run("prepare", "mvtec_ad", "--data_dir", data, "--source", "elsewhere") == 0
    printed = capsys.readouterr().out
    place = data / "mvtec_ad/1.0.0"
    assert f"is already prepared. To prepare it again, delete {place}." in printed
    assert "Ignored: --source elsewhere." in printed


def test_errors_say_why_a_dataset_cannot_be_prepared(mvtec_folder, tmp_path, capsys):
    for name, words in (
        ("synthetic_aux", "needs no preparation"),
        (mvtec_folder, f"and {mvtec_folder} as --source"),
        ("mvtec", "Did you mean mvtec_ad"),
    ):
        assert run("prepare", name, "--data_dir", tmp_path / "data") == 2
        assert words in capsys.readouterr().err
    for number in ("0", "many"):
        assert run("prepare", "visa", "--workers", number) == 2
        assert f"'{number}' is not a positive integer" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no metadata", "metadata", "description"])
def test_reports_damaged_metadata(damage, mvtec_folder, tmp_path, capsys):
    data = tmp_path / "data"
    prepare("mvtec_ad", data, source=mvtec_folder)
    place = data / "mvtec_ad/1.0.0"
    if damage == "no metadata":
        (place / "metadata.json").unlink()
    else:
        name = "metadata.json" if damage == "metadata" else "dataset_info.json"
        (place / name).write_text('{"counts": ')
    with pytest.raises(UserError, match=r"MVTec AD in .*1\.0\.0 is damaged .*Delete it"):
        PreparedDataset("mvtec_ad", data)
    assert run("verify", "mvtec_ad", "--data_dir", data) == 2
    assert "is damaged" in capsys.readouterr().err
    assert run("list", "--data_dir", data) == 0
    assert "damaged" in capsys.readouterr().out


def test_instructions_contain_exact_commands(tmp_path):
    mvtec = benchmarks.how_to_prepare("mvtec_ad", tmp_path / "my data")
    assert (
        f"python -m zsad_jax.data prepare mvtec_ad --data_dir '{tmp_path}/my data' --source"
        in mvtec
    )
    assert "https://www.mvtec.com" in mvtec
    visa = benchmarks.how_to_prepare("visa", benchmarks.default_data_dir())
    assert visa.endswith("python -m zsad_jax.data prepare visa")


def test_published_counts_add_up():
    sums = {
        name: np.sum(list(DATASETS[name].counts["test"].values()), 0).tolist()
        for name in ("mvtec_ad", "visa")
    }
    assert sums == {"mvtec_ad": [467, 1258], "visa": [962, 1200]}
    mvtec, visa = DATASETS["mvtec_ad"].counts, DATASETS["visa"].counts
    assert sum(normal for normal, _ in visa["train"].values()) == 8659
    assert sum(normal for normal, _ in mvtec["train"].values()) == 3629
    assert compare_counts(visa, visa) == []


def test_merges_several_masks():
    first, second = np.zeros((9, 12), np.uint8), np.zeros((9, 12), np.uint8)
    first[0], second[:, 0] = 1, 255
    encoded = tuple(records.mask_to_png(mask > 0) for mask in (first, second))
    image = io.BytesIO()
    draw(0).save(image, "PNG")
    sample = Sample(image=image.getvalue(), mask=encoded, has_mask=True, label=1)
    record = records.encode(sample, "mvtec_loco")
    assert record.issues == []
    np.testing.assert_array_equal(decode_mask(record.fields["mask"]), (first > 0) | (second > 0))


def test_masks_of_different_sizes_give_no_mask():
    encoded = tuple(records.mask_to_png(np.ones(shape, bool)) for shape in ((9, 12), (9, 11)))
    image = io.BytesIO()
    draw(0).save(image, "PNG")
    sample = Sample(image=image.getvalue(), mask=encoded, has_mask=True, label=1)
    record = records.encode(sample, "mvtec_loco")
    assert "differ in size" in record.issues[0].detail
    assert not record.fields["has_mask"]
    assert not decode_mask(record.fields["mask"]).any()


def test_threads_keep_order_and_run_little_ahead():
    started = []
    results = map_in_threads(lambda i: started.append(i) or i, range(100), num_workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(started) <= 3 + 2 * 2 + 1
    assert list(results) == list(range(3, 100))


def test_pairs_masks_by_stem(tmp_path):
    for name in ("a.png", "b.JPG", "c.bmp"):
        save(draw(0), tmp_path / "images" / name)
    for name in ("b_mask.png", "a.png"):
        save(mask_of(0), tmp_path / "masks" / name)
    listing = Listing(tmp_path)
    found = listing.masked(tmp_path / "images", tmp_path / "masks")
    assert [pathlib.Path(sample.mask).name if sample.mask else None for sample in found] == [
        "a.png",
        "b_mask.png",
        None,
    ]
    assert [issue.file for issue in listing.issues] == ["images/c.bmp"]
