import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks import counts
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.prepared import PreparedDataset, read_recorded
from zsad_jax.data.issues import Issue
from zsad_jax.data.preprocess import decode_mask, open_image
from zsad_jax.utils.errors import UserError

NAMES = ("mpdd", "btad", "dtd_synthetic", "goodsad", "mvtec_loco", "mvtec_ad2", "real_iad")
MVTEC_LIKE = ("mvtec_ad", *NAMES)


def published_total(name, split):
    return list(counts.total(DATASETS[name].counts[split]))


def differences(name, data_dir):
    counted = read_recorded(name, data_dir).counts
    return counts.compare_counts(counted, DATASETS[name].counts)


@pytest.mark.parametrize(
    ("name", "split", "sums"),
    [
        ("mpdd", "train", [888, 0]),
        ("mpdd", "test", [176, 282]),
        ("btad", "train", [1799, 0]),
        ("btad", "test", [451, 290]),
        ("dtd_synthetic", "test", [357, 947]),
        ("goodsad", "train", [3136, 0]),
        ("goodsad", "test", [1328, 1660]),
        ("mvtec_loco", "train", [1778, 0]),
        ("mvtec_loco", "validation", [305, 0]),
        ("mvtec_loco", "test", [575, 561 + 432]),
        ("mvtec_ad2", "train", [2528, 0]),
        ("mvtec_ad2", "validation", [302, 0]),
        ("mvtec_ad2", "test", [379, 705]),
        ("real_iad", "train", [36_465, 0]),
        ("real_iad", "test", [99_721 - 36_465, 51_329]),
    ],
)
def test_published_counts_add_up(name, split, sums):
    assert published_total(name, split) == sums


@pytest.mark.parametrize("name", NAMES)
def test_all_splits_have_the_same_categories(name):
    facts = DATASETS[name]
    for categories in facts.counts.values():
        assert set(categories) - {counts.ALL} == set(facts.categories)
    assert len(facts.categories) == {
        "mpdd": 6,
        "btad": 3,
        "dtd_synthetic": 12,
        "goodsad": 6,
        "mvtec_loco": 5,
        "mvtec_ad2": 8,
        "real_iad": 30,
    }.get(name)


@pytest.fixture
def side_by_side(make_miniature, tmp_path):
    """Writes all benchmarks with similar layouts below one folder."""
    for name in MVTEC_LIKE:
        make_miniature(name, tmp_path / "all" / name)
    return tmp_path / "all"


def test_does_not_confuse_benchmarks_with_similar_layouts(side_by_side, prepare, tmp_path):
    for name in MVTEC_LIKE:
        own = prepare(name, side_by_side / name, data_dir=tmp_path / "own")
        found = prepare(name, side_by_side, data_dir=tmp_path / "found")
        assert list(found) == list(own)
        (side_by_side / name).rename(tmp_path / "away")
        with pytest.raises(UserError, match=r"does not contain .*a folder with"):
            prepare(name, side_by_side, data_dir=tmp_path / "others")
        (tmp_path / "away").rename(side_by_side / name)


@pytest.mark.parametrize("name", ["mpdd", "dtd_synthetic", "goodsad", "real_iad"])
def test_missing_source_error_says_what_to_download(name, prepare, tmp_path):
    facts = DATASETS[name]
    with pytest.raises(UserError) as error:
        prepare(name, None)
    for words in (facts.archives[0].file_name, facts.homepage, "--source"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert facts.unpack in str(error.value)


def test_reports_planted_issues_in_mpdd(make_miniature, prepare, tools, tmp_path):
    miniature = make_miniature("mpdd", tmp_path / "official")
    root = tmp_path / "official" / "MPDD"
    black = root / "bracket_black"
    (root / "connector").mkdir()
    (black / "test/hole/notes.txt").write_text("no image and not called like one")
    (black / "test/hole/777.png").write_text("no image")
    tools.save(tools.draw_mask(0), black / "ground_truth/hole/777_mask.png")
    (black / "ground_truth/scratches/000_mask.png").unlink()
    dataset = prepare("mpdd", root)
    assert len(dataset) == sum(sample.split == "test" for sample in miniature.samples) + 1
    issues = {issue.file: issue.kind for issue in dataset.issues}
    assert set(issues) == {
        "bracket_black/test/hole/777.png",
        "bracket_black/test/scratches/000.png",
    }
    assert issues["bracket_black/test/hole/777.png"] == "image_unreadable"
    assert issues["bracket_black/test/scratches/000.png"] == "mask_missing"
    found = differences("mpdd", tmp_path / "data")
    assert "test/connector: 0 normal and 0 anomalous images instead of 30 and 14" in found
    assert "test/bracket_black: 2 normal and 4 anomalous images instead of 32 and 47" in found


@pytest.mark.parametrize("below", ["bracket_black", "bracket_black/test", "tubes/ground_truth"])
def test_rejects_subfolder_of_mpdd(below, make_miniature, prepare, tmp_path):
    make_miniature("mpdd", tmp_path / "official")
    with pytest.raises(UserError, match=r"does not contain MPDD.*bracket_black/test/hole/000\.png"):
        prepare("mpdd", tmp_path / "official" / "MPDD" / below)
    assert not benchmarks.is_prepared("mpdd", tmp_path / "data")


def test_btad_keeps_numbers_and_calls_normal_images_good(make_miniature, prepare, tmp_path):
    make_miniature("btad", tmp_path / "official")
    dataset = prepare("btad", tmp_path / "official")
    assert dataset.categories == dataset.prompt_names == ("01", "02", "03")
    assert {(s.defect, s.label) for s in dataset} == {("good", 0), ("ko", 1)}
    assert dataset.issues == ()


def test_goodsad_has_one_archive_per_category(make_miniature, prepare, tmp_path, change_facts):
    make_miniature("goodsad", tmp_path / "official")
    here = [
        one
        for one in DATASETS["goodsad"].archives
        if (tmp_path / "official" / one.file_name[:-4]).exists()
    ]
    change_facts("goodsad", archives=lambda known: here)
    packed = tmp_path / "packed"
    packed.mkdir()
    for one in here:
        category = one.file_name.removesuffix(".zip")
        with tarfile.open(packed / one.file_name, "w") as archive:
            archive.add(tmp_path / "official" / category, category)
    from_folder = prepare("goodsad", tmp_path / "official", data_dir=tmp_path / "one")
    from_archives = prepare("goodsad", packed, data_dir=tmp_path / "two")
    assert len(here) == 2
    assert list(from_archives) == list(from_folder)


def test_reports_loco_masks_of_different_sizes(make_miniature, prepare, tools, tmp_path):
    make_miniature("mvtec_loco", tmp_path / "official")
    root = tmp_path / "official" / "mvtec_loco_anomaly_detection"
    masks = root / "juice_bottle/ground_truth/logical_anomalies"
    tools.save(tools.draw_mask(0, size=(5, 5)), masks / "000/001.png")
    for path in (masks / "001").iterdir():
        path.unlink()
    dataset = prepare("mvtec_loco", root)
    assert {issue.file: issue.kind for issue in dataset.issues} == {
        "juice_bottle/test/logical_anomalies/000.png": "mask_unreadable",
        "juice_bottle/test/logical_anomalies/001.png": "mask_missing",
    }


@pytest.mark.parametrize("mask_name", ["000.png", "000_mask.png", "000.PNG"])
def test_pairs_masks_of_mvtec_ad2_by_stem(mask_name, prepare, tools, tmp_path):
    public = tmp_path / "mvtec_ad_2" / "vial" / "test_public"
    tools.save(tools.draw(0), public / "good" / "000.png")
    tools.save(tools.draw(1), public / "bad" / "000.png")
    mask = tools.save_mask(tools.draw_mask(2), public / "ground_truth" / "bad" / mask_name)
    dataset = prepare("mvtec_ad2", tmp_path / "mvtec_ad_2")
    assert [sample.label for sample in dataset] == [1, 0]
    np.testing.assert_array_equal(decode_mask(dataset[0].mask), mask)
    assert dataset.issues == ()


@pytest.mark.parametrize("given", ["", "VisA_pytorch/1cls"])
def test_reads_visa_as_repacked_by_its_authors(given, make_miniature, prepare, tools, tmp_path):
    make_miniature("visa", tmp_path / "official")
    official = [
        *prepare("visa", tmp_path / "official", data_dir=tmp_path / "before", split="train"),
        *PreparedDataset("visa", tmp_path / "before"),
    ]
    root = tmp_path / "repacked/VisA_pytorch/1cls"
    for number, sample in enumerate(official):
        split, kind = "train" if number < 4 else "test", "bad" if sample.label else "good"
        name = sample.file_name.rpartition("/")[2]
        path = root / sample.category / split / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.image)
        if sample.label:
            mask = root / sample.category / "ground_truth/bad" / name.replace(".JPG", ".png")
            tools.save_mask(Image.fromarray(decode_mask(sample.mask)), mask)
    (root / "pipe_fryum/ground_truth/bad/002.png").unlink()
    test = prepare("visa", tmp_path / "repacked" / given)
    train = PreparedDataset("visa", tmp_path / "data", "train")
    assert repr(train) == f"PreparedDataset('visa', images={len(train)}, categories=2)"
    lost = "pipe_fryum/test/bad/002.JPG"
    assert test.issues == (Issue("mask_missing", lost),)
    assert test[0].file_name == "candle/test/bad/000.JPG"

    def fields(sample):
        mask = decode_mask(sample.mask).tobytes() if sample.mask else None
        return (sample.category, sample.label, sample.defect, sample.image, mask)

    assert len(train) == 4
    found = {fields(sample) for sample in (*train, *test) if sample.file_name != lost}
    assert found == {fields(sample) for sample in official[:-1]}
    assert official[-1].file_name == "pipe_fryum/Data/Images/Anomaly/002.JPG"


@pytest.fixture
def real_iad(make_miniature, tmp_path):
    """Writes the miniature of Real-IAD."""
    make_miniature("real_iad", tmp_path / "official")
    return tmp_path / "official"


def test_reads_real_iad_at_other_size_with_moved_split(real_iad, prepare):
    for path in (real_iad / "realiad_jsons/realiad_jsons").iterdir():
        path.rename(real_iad / "realiad_jsons" / path.name)
    (real_iad / "realiad_jsons/realiad_jsons").rmdir()
    (real_iad / "realiad_512").rename(real_iad / "realiad_1024")
    dataset = prepare("real_iad", real_iad)
    assert {sample.file_name.split("/")[0] for sample in dataset} == {"realiad_1024"}
    sides = {(sample.subject, sample.slice, sample.label) for sample in dataset}
    assert {("NG/BX/S0001", 1, 1), ("NG/BX/S0001", 2, 0), ("OK/S0002", 2, 0)} <= sides


def test_reports_mismatches_in_real_iad(real_iad, prepare, tools):
    images, jsons = real_iad / "realiad_512", real_iad / "realiad_jsons/realiad_jsons"
    (jsons / "usb.json").rename(jsons / "toy.json")
    missing = next((images / "audiojack/OK/S0002").glob("*_C1_*"))
    missing.unlink()
    mask = next((images / "audiojack/NG/BX/S0001").glob("*_mask.png"))
    mask.unlink()
    extra = images / "audiojack/OK/S0009/audiojack_0009_OK_C5_1.jpg"
    tools.save(tools.draw(0), extra)
    dataset = prepare("real_iad", real_iad)

    def name(path):
        return path.relative_to(real_iad).as_posix()

    assert {issue.file: issue.kind for issue in dataset.issues} == {
        name(missing): "image_missing",
        name(mask).replace("_mask.png", ".jpg"): "mask_missing",
        name(extra): "image_unused",
        name(jsons / "toy.json"): "folder_missing",
        name(images / "usb"): "list_missing",
    }
    assert [sample.label for sample in dataset if not sample.has_mask] == [1]


@pytest.mark.parametrize("content", ["[]", "{", '{"train": []}', '{"train": [1], "test": []}'])
def test_rejects_json_that_is_not_a_split(content, real_iad, prepare):
    (real_iad / "realiad_jsons/realiad_jsons/usb.json").write_text(content)
    with pytest.raises(UserError, match=r"usb\.json is not a split of Real-IAD .*image_path"):
        prepare("real_iad", real_iad)


def test_rejects_real_iad_split_with_outside_path(real_iad, prepare, tmp_path):
    path = real_iad / "realiad_jsons/realiad_jsons/usb.json"
    content = json.loads(path.read_text())
    content["test"][0]["image_path"] = str(tmp_path / "elsewhere.png")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"usb\.json is not a split"):
        prepare("real_iad", real_iad)


def test_reads_real_bottles_without_masks(real_data, prepare, tmp_path):
    """Uses counts by hand: one training image, one normal, one broken; 900x900; no ground truth."""
    root = real_data("mvtec_bottle_nomask")
    dataset = prepare("mvtec_ad", root)
    train = PreparedDataset("mvtec_ad", tmp_path / "data", "train")
    found = {(s.file_name, s.label, s.has_mask) for s in [*train, *dataset]}
    assert found == {
        ("bottle/train/good/000.png", 0, True),
        ("bottle/test/good/000.png", 0, True),
        ("bottle/test/broken_large/002.png", 1, False),
    }
    assert {open_image(s.image).image.size for s in dataset} == {(900, 900)}
    assert [s.image for s in dataset] == [(root / s.file_name).read_bytes() for s in dataset]
    assert dataset.issues == (Issue("mask_missing", "bottle/test/broken_large/002.png"),)
    found = differences("mvtec_ad", tmp_path / "data")
    assert "test/bottle: 1 normal and 1 anomalous images instead of 20 and 63" in found
    assert len(found) == 30
