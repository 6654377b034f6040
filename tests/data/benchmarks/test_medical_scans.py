"""Tests of HeadCT, BrainMRI, Br35H, LAG, COVID-19 and MSD lung."""

import collections
import csv
import math
import sys
import threading

import nibabel
import numpy as np
import pytest

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks import counts, msd_lung
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.prepared import PreparedDataset
from zsad_jax.data.preprocess import open_image
from zsad_jax.utils.errors import UserError


def count_labels(dataset):
    labels = [sample.label for sample in dataset]
    return labels.count(0), labels.count(1)


def sum_pixels(dataset):
    """Returns the sums of the gray values of all normal and of all anomalous images."""
    sums = [0, 0]
    for sample in dataset:
        sums[sample.label] += int(
            np.asarray(open_image(sample.image).image.convert("RGB")).sum(dtype=np.int64)
        )
    return tuple(sums)


def test_counts_match_published_ones():
    published = {
        name: DATASETS[name].counts["test"][name]
        for name in ("headct", "brainmri", "br35h", "lag", "covid19")
    }
    assert published == {
        "headct": (100, 100),
        "brainmri": (98, 155),
        "br35h": (1500, 1500),
        "lag": (math.ceil(3143 / 4), 1711),
        "covid19": (1341, 219),
    }
    assert DATASETS["lag"].counts["train"] == {"lag": (3143 - 786, 0)}


@pytest.mark.parametrize(
    ("name", "folder", "numbers", "sums"),
    [
        ("headct", "head_ct", (20, 20), (577695231, 1838178041)),
        ("brainmri", "brain_mri", (20, 20), (672816124, 589931623)),
        ("br35h", "br35h", (16, 16), (372824208, 864208911)),
    ],
)
def test_reads_real_images(name, folder, numbers, sums, real_data, prepare, tmp_path):
    """Reads them from the dataset's own folder, and from one that also contains other datasets."""
    own = real_data(folder)
    dataset = prepare(name, own)
    assert count_labels(dataset) == numbers
    assert sum_pixels(dataset) == sums
    assert dataset.issues == ()
    among_others = prepare(name, own.parent, data_dir=tmp_path / "among_others")
    assert list(among_others) == list(dataset)


def test_reads_real_headct_labels(real_data, prepare):
    """Relies on the numbering of the full dataset, in which numbers below 100 are hemorrhages."""
    for sample in prepare("headct", real_data("head_ct")):
        assert sample.label == (int(sample.file_name.removesuffix(".png")[-3:]) < 100)


@pytest.mark.parametrize("folders", [("a", "b"), ("b", "a")])
def test_reads_brainmri_and_br35h_from_one_folder(folders, make_miniature, prepare, tmp_path):
    for name, folder in zip(("brainmri", "br35h"), folders, strict=True):
        make_miniature(name, tmp_path / "both" / folder)
    brainmri, br35h = (prepare(name, tmp_path / "both") for name in ("brainmri", "br35h"))
    assert count_labels(brainmri) == (6, 4)
    assert count_labels(br35h) == (3, 3)
    assert {sample.file_name for sample in br35h if sample.label} == {
        "yes/y0.jpg",
        "yes/y1.jpg",
        "yes/y1499.jpg",
    }


def test_does_not_confuse_brainmri_with_br35h(make_miniature, prepare, tmp_path):
    make_miniature("brainmri", tmp_path / "brainmri")
    with pytest.raises(UserError, match="does not contain Br35H"):
        prepare("br35h", tmp_path / "brainmri")


def test_reads_brainmri_from_inner_folder(make_miniature, prepare, tmp_path):
    make_miniature("brainmri", tmp_path / "whole")
    (tmp_path / "half").mkdir()
    (tmp_path / "whole/brain_tumor_dataset").rename(tmp_path / "half/brain_tumor_dataset")
    inner = prepare("brainmri", tmp_path / "half")
    outer = prepare("brainmri", tmp_path / "whole", data_dir=tmp_path / "outer")
    assert list(inner) == list(outer)
    assert len(inner) == 10


@pytest.mark.parametrize("below", ["", "head_ct/"])
def test_reads_less_nested_headct(below, make_miniature, prepare, tmp_path):
    make_miniature("headct", tmp_path / "official")
    flat = tmp_path / "flat" / below
    flat.mkdir(parents=True)
    for path in (tmp_path / "official/head_ct/head_ct").iterdir():
        path.rename(flat / path.name)
    (tmp_path / "official/labels.csv").rename(tmp_path / "flat/labels.csv")
    dataset = prepare("headct", tmp_path / "flat")
    assert [(sample.file_name, sample.label) for sample in dataset] == [
        (f"{below}{number:03}.png", label)
        for number, label in ((0, 1), (2, 1), (12, 1), (110, 0), (199, 0))
    ]


def test_rejects_label_table_of_other_dataset(make_miniature, prepare, tmp_path):
    make_miniature("headct", tmp_path / "other")
    (tmp_path / "other/labels.csv").write_text("images/cell0001.png  1.0  mono\n")
    with pytest.raises(
        UserError, match=r"does not contain HeadCT.*labels\.csv and head_ct/head_ct"
    ):
        prepare("headct", tmp_path / "other")


def write_lag(root, tools, *, below="", normal=9):
    for kind, number in (("non_glaucoma", normal), ("Suspicious_Glaucoma", 2)):
        for i in range(number):
            tools.save(tools.draw(i), root / kind / below / f"{i:04}.jpg")
            tools.save(tools.draw(i, mode="L"), root / kind / "attention_map" / f"{i:04}.jpg")


@pytest.mark.parametrize("below", ["", "image"])
def test_lag_test_split_has_a_quarter_of_normal_images(below, tools, prepare, tmp_path):
    write_lag(tmp_path / "lag", tools, below=below)
    test = prepare("lag", tmp_path / "lag")
    train = PreparedDataset("lag", tmp_path / "data", "train")
    assert count_labels(test) == (3, 2)
    assert count_labels(train) == (6, 0)
    names = [sample.file_name for dataset in (test, train) for sample in dataset]
    assert len(set(names)) == 11
    assert not [name for name in names if "attention" in name]


def test_lag_instructions_say_how_to_get_and_unpack_it(tmp_path):
    sentence = benchmarks.how_to_prepare("lag", tmp_path)
    assert "request the password" in sentence
    assert "unpack with unrar x -pPASSWORD LAG_database_part_1.rar" in sentence
    assert "https://github.com/smilell/AG-CNN" in sentence


def test_reads_covid19_as_first_uploaded(tools, prepare, tmp_path):
    """Covers flat folders, including those expected by the published code; other diseases are excluded."""
    folder = tmp_path / "first" / "COVID-19 Radiography Database"
    kinds = (("COVID-19", 2), ("NORMAL", 3), ("Viral Pneumonia", 4))
    for kind, number in kinds:
        for i in range(1, number + 1):
            tools.save(tools.draw(i), folder / kind / f"{kind} ({i}).png")
    dataset = prepare("covid19", tmp_path / "first")
    assert count_labels(dataset) == (3, 2)
    assert {sample.file_name.split("/")[0] for sample in dataset if sample.label} == {"COVID-19"}


# MSD lung


def save_volume(volume, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


def write_volumes(root, names, *, size=(4, 5, 30)):
    """Writes volumes of noise whose third slice is anomalous."""
    for seed, name in enumerate(names):
        volume = np.random.default_rng(seed).integers(-1024, 3000, size).astype(np.int16)
        label = np.zeros(size, np.uint8)
        label[1:3, 1:3, 2] = 1
        save_volume(volume, root / f"imagesTr/{name}.nii.gz")
        save_volume(label, root / f"labelsTr/{name}.nii.gz")


def test_slices_are_scaled_independently(tmp_path):
    """Checks values by hand: truncated, not rounded; constant slices are black; 16 bits do not overflow."""
    slices = [[[0, 1], [2, 4]], [[7, 7], [7, 7]], [[-32768, 32767], [0, -1]]]
    expected = [[[0, 63], [127, 255]], [[0, 0], [0, 0]], [[0, 255], [127, 127]]]
    save_volume(np.moveaxis(np.int16(slices), 0, -1), tmp_path / "lung_001.nii.gz")
    found = msd_lung.read_slices(tmp_path / "lung_001.nii.gz")
    np.testing.assert_array_equal(found, expected)


def test_applies_scale_in_header(tmp_path):
    volume = np.float64([[[0.5, 3.0], [1.0, np.nan]]])
    save_volume(volume, tmp_path / "lung_001.nii")
    image = nibabel.Nifti1Image(np.int16([[[0, 1, 5], [2, 4, 5]]]), np.eye(4))
    image.header.set_slope_inter(-2.0, 10.0)
    nibabel.save(image, tmp_path / "lung_002.nii")
    # The slice with an undefined value is black.
    expected = [[[0, 255]], [[0, 0]]]
    np.testing.assert_array_equal(msd_lung.read_slices(tmp_path / "lung_001.nii"), expected)
    stored = np.asarray(nibabel.load(tmp_path / "lung_002.nii").dataobj)
    np.testing.assert_allclose(stored[0, :, 0], [10, 6])
    expected = [[[255, 0]], [[255, 0]], [[0, 0]]]
    np.testing.assert_array_equal(msd_lung.read_slices(tmp_path / "lung_002.nii"), expected)


@pytest.mark.parametrize("workers", [1, 4])
def test_decodes_each_volume_once(workers, prepare, tmp_path, monkeypatch):
    write_volumes(tmp_path / "lung", [f"lung_{i:03}" for i in range(4)])
    decoded, read = collections.Counter(), msd_lung.read_slices

    def counted(path):
        decoded[path.name] += 1
        return read(path)

    monkeypatch.setattr(msd_lung, "read_slices", counted)
    dataset = prepare("msd_lung", tmp_path / "lung", num_workers=workers)
    assert len(dataset) == 4 * 30
    assert decoded == {f"lung_{i:03}.nii.gz": 1 for i in range(4)}


def test_slices_do_not_depend_on_order_and_threads(tmp_path):
    write_volumes(tmp_path, ["lung_001", "lung_002", "lung_003"], size=(4, 5, 3))
    samples = msd_lung.list_files(tmp_path).samples["test"]
    expected = [sample.image.read() for sample in samples]
    assert len(set(expected)) == 9
    found = [None] * len(samples)

    def work(start):
        for index in range(start, -1, -1):
            found[index] = samples[index].image.read()

    threads = [threading.Thread(target=work, args=(start,)) for start in (8, 5, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_all_published_volumes_give_no_issue(tmp_path):
    volumes = DATASETS["msd_lung"].categories
    assert len(volumes) == 63
    write_volumes(tmp_path, volumes, size=(2, 3, 3))
    listing = msd_lung.list_files(tmp_path)
    assert listing.issues == []
    assert count_labels(listing.samples["test"]) == (126, 63)
    found = {"test": counts.count(listing.samples["test"])}
    assert counts.compare_counts(found, DATASETS["msd_lung"].counts) == []
    del found["test"]["lung_096"]
    found["test"]["lung_002"] = (9, 0)
    assert counts.compare_counts(found, DATASETS["msd_lung"].counts) == [
        "test/lung_096: this category has no images",
        "test/lung_002: 9 normal and 0 anomalous images instead of 0 and 0",
    ]


def test_continues_after_damaged_volume(tmp_path, prepare):
    """Flips a byte, which is detected by the checksum only."""
    write_volumes(tmp_path / "lung", ["lung_001", "lung_002"])
    path = tmp_path / "lung/imagesTr/lung_001.nii.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    dataset = prepare("msd_lung", tmp_path / "lung")
    assert dataset.categories == ("lung_002",)
    assert len(dataset) == 30
    assert [issue.file for issue in dataset.issues] == ["imagesTr/lung_001.nii.gz"]


def test_rejects_dataset_without_usable_volume(tmp_path, prepare):
    write_volumes(tmp_path / "lung", ["lung_001"])
    (tmp_path / "lung/labelsTr/lung_001.nii.gz").write_text("nothing")
    with pytest.raises(UserError, match=r"has no images of MSD lung.*imagesTr/lung_053\.nii\.gz"):
        prepare("msd_lung", tmp_path / "lung")


def test_rejects_other_msd_task(tmp_path, prepare):
    write_volumes(tmp_path / "msd/Task03_Liver", ["liver_1"])
    with pytest.raises(UserError, match="does not contain MSD lung"):
        prepare("msd_lung", tmp_path / "msd")
    write_volumes(tmp_path / "msd/Task06_Lung", ["lung_001"])
    assert prepare("msd_lung", tmp_path / "msd").categories == ("lung_001",)


def test_error_names_missing_nibabel(tmp_path, prepare, monkeypatch):
    write_volumes(tmp_path / "lung", ["lung_001"])
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UserError, match=r"requires nibabel\. .* pip install nibabel$") as error:
        prepare("msd_lung", tmp_path / "lung")
    assert "\n" not in str(error.value)


def test_reports_invalid_row_of_headct(make_miniature, prepare, tmp_path):
    """Covers rows of the wrong length; the other rows are read."""
    make_miniature("headct", tmp_path / "ct")
    with open(tmp_path / "ct/labels.csv", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 2 and row[1] != "yes"]
    with open(tmp_path / "ct/labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([*rows, ["1", "2", "3"]])
    dataset = prepare("headct", tmp_path / "ct")
    assert len(dataset) == 5
    invalid = [issue.detail for issue in dataset.issues if issue.kind == "entry_invalid"]
    assert invalid == ["row '1,2,3'"]
