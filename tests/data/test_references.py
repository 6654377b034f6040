"""Tests of the draw of reference images from train splits."""

import cv2
import numpy as np
import pytest
from PIL import Image

from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.open import open_dataset, open_train_split
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.data.references import draw_references
from zsad_jax.utils.errors import NoSplitError, UserError

CATEGORIES = ("nut", "bolt")
PIXEL = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()


def source(counts=(9, 8), label=0):
    names = [name for name, count in zip(CATEGORIES, counts, strict=True) for _ in range(count)]
    made = [
        Sample(image=PIXEL, label=label, category=name, file_name=f"{name}/{number}.png")
        for number, name in enumerate(names)
    ]
    return Samples(
        "parts", [*made, Sample(image=PIXEL, label=1, category="nut", file_name="bad.png")]
    )


def test_draw_depends_on_the_seed_alone():
    drawn = draw_references(source(), CATEGORIES, [(3, 0), (3, 1)])
    [again] = draw_references(source(), CATEGORIES, [(3, 0)]).values()
    assert drawn[3, 0].images == again.images != drawn[3, 1].images
    assert drawn[3, 0].digest == again.digest != drawn[3, 1].digest
    for name, of_category in again.images.items():
        assert len({*of_category.values()}) == len(of_category) == 3
        assert all(file.startswith(f"{name}/") for file in of_category)


def test_fewer_images_are_part_of_more():
    few, many = draw_references(source(), CATEGORIES, [(2, 5), (5, 5)]).values()
    assert all(few.images[name].items() < many.images[name].items() for name in CATEGORIES)


def test_uses_normal_images_only():
    [drawn] = draw_references(source((9, 8)), CATEGORIES, [(8, 0)]).values()
    assert "bad.png" not in drawn.images["nut"]
    with pytest.raises(
        UserError, match=r"parts has 8 normal images of the category bolt .* 9 of each"
    ):
        draw_references(source(), CATEGORIES, [(9, 0)])
    with pytest.raises(NoSplitError, match="parts has 0 normal images of the category nut"):
        draw_references(source(label=1), CATEGORIES, [(1, 0)])


def test_synthetic_train_split_has_other_images():
    train, test = open_train_split("synthetic_target", ""), open_dataset("synthetic_target", "")
    assert len(train) == 128
    assert train.categories == test.categories
    first = train[0]
    assert (first.label, first.category, first.defect) == (0, "brushed_steel", "good")
    assert first.file_name not in {test[index].file_name for index in range(32)}
    assert train.fingerprint() != test.fingerprint()
    with pytest.raises(NoSplitError, match=r"no split .validation.\. Available: train, test"):
        open_dataset("synthetic_target:validation", "")


@pytest.fixture
def parts(tmp_path):
    """Writes two normal images for training and one of each kind for the test."""
    places = ("train/good/0", "train/good/1", "test/good/0", "test/bent/0")
    for value, place in enumerate(places):
        path = tmp_path / "parts" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 50 * value, np.uint8)).save(path)
    return tmp_path / "parts"


def test_reads_drawn_images_of_a_folder(parts):
    train = open_train_split({"folder": str(parts)}, "")
    [drawn] = draw_references(train, ("parts",), [(2, 0)]).values()
    assert drawn.images == {"parts": {"train/good/0.png": 0, "train/good/1.png": 1}}
    [images] = drawn.read(Preprocess(image_size=4))
    assert images[:, 0, 0, 0].tolist() == [0, 50]
    (parts / "train/good/1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"reference image cannot be read: .*good/1.png"):
        list(drawn.read(Preprocess(image_size=4)))
    with pytest.raises(UserError, match=r"reference image cannot be read: .*good/1.png"):
        draw_references(train, ("parts",), [(1, 0), (2, 0)])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"folder": "parts/test"}, "test has no train split. Arrange it as <category>/train/good"),
        ({"folder": "parts", "split": "train"}, "is a train split itself"),
        ("synthetic_target:train", "synthetic_target:train is a train split itself"),
    ],
)
def test_rejects_datasets_without_train_split(parts, monkeypatch, spec, words):
    monkeypatch.chdir(parts.parent)
    with pytest.raises(UserError, match=words):
        open_train_split(spec, "")
