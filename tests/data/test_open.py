"""Tests of opening datasets by name, with splits, and joined."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data.dataset import Joined, Sample, Samples
from zsad_jax.data.loader import load_batches
from zsad_jax.data.open import is_available, open_dataset
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import NotPreparedError, UserError


@pytest.fixture
def data_dir(tmp_path):
    """Writes two small community copies: "mpdd" with train and test, "btad" with test only."""
    for name, splits in (("mpdd", ("train", "test")), ("btad", ("test",))):
        content = {}
        for split in splits:
            entries = []
            for number in range(3):
                path = tmp_path / name / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((8, 8, 3), 20 * number + len(split), np.uint8)
                Image.fromarray(pixels).save(path)
                entries.append(
                    {"img_path": f"{split}/{number}.png", "mask_path": "", "anomaly": number % 2}
                )
            content[split] = {f"{name}_part": entries}
        (tmp_path / name / "meta.json").write_text(json.dumps(content))
    return tmp_path


def names(dataset):
    return [sample.file_name for sample in dataset]


def test_opens_split_by_name(data_dir):
    assert names(open_dataset("mpdd:train", data_dir)) == [f"train/{i}.png" for i in range(3)]
    assert open_dataset("mpdd:train", data_dir).name == "mpdd:train"
    assert open_dataset("mpdd", data_dir).name == "mpdd"
    with pytest.raises(UserError, match="no split 'train'"):
        open_dataset("btad:train", data_dir)


def test_joins_splits(data_dir):
    dataset = open_dataset("mpdd:train+mpdd:test", data_dir)
    expected = [f"{split}/{i}.png" for split in ("train", "test") for i in range(3)]
    assert names(dataset) == expected
    assert dataset.categories == ("mpdd_part",)
    assert dataset.prompt_names == ("mpdd part",)
    assert not dataset.contiguous
    assert len(dataset) == 6
    assert dataset[-1] == dataset[5]
    with pytest.raises(IndexError, match="6 images"):
        dataset[6]
    batches = list(load_batches(dataset, Preprocess(image_size=4), batch_size=4))
    assert [name for batch in batches for name in batch.file_names] == [*expected, "", ""]


def test_joins_datasets(data_dir):
    dataset = open_dataset("mpdd+btad", data_dir)
    assert dataset.categories == ("mpdd_part", "btad_part")
    assert dataset.contiguous
    assert pickle.loads(pickle.dumps(dataset))[4] == dataset[4]
    assert [sample.category for sample in dataset] == ["mpdd_part"] * 3 + ["btad_part"] * 3


def test_representation_is_one_line(data_dir):
    shown = {name: repr(open_dataset(name, data_dir)) for name in ("mpdd", "synthetic_aux")}
    assert shown == {
        "mpdd": "Samples('mpdd', images=3, categories=1)",
        "synthetic_aux": "Synthetic('synthetic_aux', images=256, categories=8)",
    }
    joined = open_dataset("mpdd+btad", data_dir)
    assert repr(joined) == "Joined('mpdd+btad', images=6, categories=2)"


def test_fingerprint_changes_with_any_member(data_dir):
    before = open_dataset("mpdd+btad", data_dir).fingerprint()
    assert open_dataset("mpdd+btad", data_dir).fingerprint() == before
    assert open_dataset("btad+mpdd", data_dir).fingerprint() != before
    Image.new("RGB", (9, 9)).save(data_dir / "btad/test/1.png")
    assert open_dataset("mpdd+btad", data_dir).fingerprint() != before


def test_reports_missing_member_of_joined_dataset(data_dir):
    assert not is_available("mpdd+visa", data_dir)
    with pytest.raises(NotPreparedError, match="prepare visa"):
        open_dataset("mpdd+visa", data_dir)


def test_suggests_name_for_misspelled_dataset(data_dir):
    with pytest.raises(UserError, match=r"Unknown dataset 'mpd'. .* Did you mean mpdd"):
        open_dataset("mpd", data_dir)


def test_issues_of_shared_benchmark_are_reported_once(data_dir):
    (data_dir / "mpdd/test/1.png").unlink()
    one = open_dataset("mpdd", data_dir)
    one.issues = (("1.png", "gone"),)
    assert Joined("twice", [one, one]).issues == one.issues


def test_folder_with_meta_json_is_read_from_it(data_dir):
    dataset = open_dataset({"folder": data_dir / "mpdd", "name": "mine"}, data_dir)
    assert (dataset.name, dataset.categories, len(dataset)) == ("mine", ("mpdd_part",), 3)
    with pytest.raises(UserError, match="'color'"):
        open_dataset({"folder": data_dir / "mpdd", "color": "red"}, data_dir)


def test_naming_option(data_dir):
    (data_dir / "btad").rename(data_dir / "ksdd")
    assert open_dataset("ksdd", data_dir).prompt_names == ("electrical commutators",)
    assert open_dataset("ksdd", data_dir, naming="plain").prompt_names == ("btad part",)


@pytest.mark.parametrize("wrong", [{"category": "nut"}, {"label": "good"}, {"label": 2}])
def test_rejects_samples_of_other_categories_and_labels(wrong):
    sample = Sample(image="a.png", category="bolt", file_name="a.png")
    with pytest.raises(
        UserError, match=r"Sample 0 of parts \(a.png\) has .* Expected 0 or 1, and one of"
    ):
        Samples("parts", [dataclasses.replace(sample, **wrong)], ["bolt"])
