"""Tests of verification: datasets that fail it, and reported issues."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from zsad_jax.data.inspect.opened import open_all_splits
from zsad_jax.data.inspect.verify import verify


def write(path, values, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, exif=exif)


@pytest.fixture
def parts(tmp_path):
    """Writes a category of square images in MVTec's layout."""
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 12), np.uint8)
    mask[2:5, 3:9] = 255
    for name in ("good/0", "bad/0", "bad/1"):
        write(tmp_path / f"nut/test/{name}.png", rng.integers(0, 256, (12, 12), np.uint8))
    for number in range(2):
        write(tmp_path / f"nut/ground_truth/bad/{number}_mask.png", mask)
    return tmp_path


def find(folder):
    """Returns whether verification passes, and the kinds of the issues and notes by file."""
    found = verify(open_all_splits(str(folder), folder))
    issues = {issue.file: issue.kind for issue in found.issues}
    return found.good, issues, {issue.file: issue.kind for issue in found.notes}


def test_accepts_good_folder(parts):
    assert find(parts) == (True, {}, {})


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (np.full((12, 12), 255, np.uint8), "mask_full"),
        (np.zeros((12, 12), np.uint8), "mask_empty"),
        (np.tile(np.uint8([0, 255]), (8, 3)), "mask_size"),
    ],
)
def test_rejects_masks(parts, mask, kind):
    write(parts / "nut/ground_truth/bad/1_mask.png", mask)
    assert find(parts) == (False, {"nut/test/bad/1.png": kind}, {})


def test_accepts_mask_of_half_the_size(parts):
    write(parts / "nut/ground_truth/bad/1_mask.png", np.tile(np.uint8([0, 255]), (6, 3)))
    assert find(parts) == (True, {}, {"nut/test/bad/1.png": "mask_resized"})


def test_rejects_image_with_orientation_that_mask_lacks(parts):
    image = parts / "nut/test/bad/1.png"
    write(image, np.asarray(Image.open(image)), orientation=6)
    name = "nut/test/bad/1.png"
    assert find(parts) == (False, {name: "mask_orientation"}, {name: "image_turned"})


def test_rejects_files_of_unsupported_formats(parts):
    (parts / "nut/test/bad/2.heic").write_bytes(b"x")
    (parts / "nut/test/notes.txt").write_text("x")
    good, issues, notes = find(parts)
    assert (good, issues) == (False, {"nut/test/bad/2.heic": "format_unsupported"})
    assert notes == {"nut/test/notes.txt": "document"}
