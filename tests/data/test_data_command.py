"""Tests of `python -m zsad_jax.data` on the user's own folders, given by path."""

import json
import pathlib

import pytest
from PIL import Image

from zsad_jax.data import __main__ as command

REAL = pathlib.Path(__file__).parents[3] / "shared" / "realdata"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not available")


@pytest.fixture
def run(capsys):
    """Returns a function that runs the command and returns exit code, stdout and stderr."""

    def call(*arguments):
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return call


MASK = 255


def save(path, value=0, size=(6, 5)):
    """Writes an image of one gray value, or one whose left column has the value of a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    image.paste(value, (0, 0, 1 if value == MASK else size[0], size[1]))
    image.save(path)


@pytest.fixture
def parts(tmp_path):
    """Writes two categories in MVTec's layout."""
    for category in ("nut", "screw"):
        save(tmp_path / "parts" / category / "train/good/000.png")
        for number in range(3):
            save(tmp_path / "parts" / category / f"test/good/{number}.png")
            save(tmp_path / "parts" / category / f"test/bent/{number}.png")
            save(tmp_path / "parts" / category / f"ground_truth/bent/{number}_mask.png", MASK)
    return tmp_path / "parts"


def lines_with(text, *parts):
    return [line for line in text.splitlines() if all(part in line for part in parts)]


def test_verifies_valid_folder(run, parts):
    code, out, _ = run("verify", parts)
    assert code == 0
    assert lines_with(out, "parts", "nut", "1 / 0", "3 / 3")
    assert lines_with(out, "parts", "all", "2 / 0", "6 / 6")
    assert "published" not in out
    assert out.endswith("parts: all images and masks are usable\n")


def test_reports_all_planted_issues(run, parts):
    bent = parts / "nut/test/bent"
    truth = parts / "nut/ground_truth/bent"
    bent.joinpath("0.png").write_bytes(b"")
    truth.joinpath("1_mask.png").unlink()
    save(truth / "2_mask.png", 0)
    save(truth / "9_mask.png", MASK)
    save(parts / "screw/ground_truth/bent/0_mask.png", MASK, (4, 4))
    gray = Image.new("L", (6, 5))
    gray.putdata(range(30))
    gray.save(parts / "screw/ground_truth/bent/1_mask.png")
    (parts / "bolt/test/good").mkdir(parents=True)
    code, out, _ = run("verify", parts)
    assert code == 1
    for file_name, reason in [
        ("nut/test/bent/0.png", "the file is empty"),
        ("nut/test/bent/1.png", "the mask is missing"),
        ("nut/test/bent/2.png", "its mask is empty"),
        ("9_mask.png", "the mask belongs to no image"),
        ("screw/test/bent/0.png", "(4x4, the image 6x5)"),
        ("bolt/test", "the folder has no images"),
    ]:
        assert lines_with(out, "issue: ", file_name, reason), (file_name, out)
    assert lines_with(out, "note: screw/test/bent/1.png: ", "(30 levels, threshold 0)")
    assert "6 issues" in out
    assert out.endswith("parts: 2 unusable samples; 6 issues\n")
    assert lines_with(out, "parts", "all", "6 / 6")  # no image is dropped


def test_verifies_flat_folder_with_masks_beside_images(run, tmp_path):
    for stem, value in (("a", 0), ("b", MASK)):
        save(tmp_path / "flat" / f"{stem}.png")
        save(tmp_path / "flat" / f"{stem}_mask.png", value)
    code, out, _ = run("verify", tmp_path / "flat")
    assert code == 0
    assert lines_with(out, "flat", "1 / 1")


def test_verifies_folder_with_meta_json(run, parts):
    entries = [{"img_path": f"nut/test/good/{i}.png", "anomaly": 0} for i in range(2)]
    entries += [{"img_path": "gone.png", "mask_path": "gone.png", "anomaly": 1}]
    (parts / "meta.json").write_text(json.dumps({"test": {"nut": entries}}))
    code, out, _ = run("verify", parts)
    assert code == 1
    assert lines_with(out, "nut", "2 / 1")
    assert lines_with(out, "issue: gone.png: the image cannot be read (the file does not exist)")
    (parts / "meta.json").write_text("[]")
    assert "is not a valid meta.json" in run("verify", parts)[2]


def test_rejects_mistakes(run, parts, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, words in [
        (tmp_path / "empty", "No images found in"),
        (parts / "nut/test/good/0.png", "is a file. Give a dataset's key or a folder"),
        (tmp_path / "nowhere", "is neither a known dataset nor a folder"),
    ]:
        code, out, err = run("verify", path)
        assert (code, out) == (2, "")
        assert words in err
    assert run("verify", parts, "--workers", "0")[0] == 2


def test_shows_folder_and_synthetic_dataset(run, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("show", parts)
    assert (code, out) == (0, f"Wrote 12 images of parts to {tmp_path / 'parts.png'}.\n")
    assert run("show", "synthetic_aux", "--category", "gear", "--images", "3")[0] == 0
    with Image.open(tmp_path / "synthetic_aux.png") as sheet:
        assert sheet.width == 664


@needs_real
@pytest.mark.parametrize(
    ("arguments", "counts", "issues"),
    [
        (("hazelnut_toy",), ("hazelnut", "10 / 0", "3 / 9"), 0),
        (("brain_mri", "--normal_folders", "no"), ("brain_mri", "20 / 20"), 1),
        (("mvtec_bottle_nomask",), ("bottle", "1 / 0", "1 / 1"), 1),
        (("KolektorSDD",), ("KolektorSDD", "5 / 9"), 0),
    ],
)
def test_verifies_real_folders(run, arguments, counts, issues):
    code, out, _ = run("verify", REAL / arguments[0], *arguments[1:])
    assert code == int(issues > 0)
    assert lines_with(out, *counts)
    assert len(lines_with(out, "issue: ")) == issues
