"""Tests of benchmarks with strips, lists of cells, or only anomalous images."""

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data.benchmarks import aitex, counts, ksdd, listing
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.layouts import find_layout
from zsad_jax.data.benchmarks.prepared import PreparedDataset
from zsad_jax.data.issues import Issue
from zsad_jax.data.preprocess import decode_mask
from zsad_jax.utils.errors import UserError

NAMES = ("ksdd", "dagm", "aitex", "elpv", "sd_saliency_900", "rsdds_113")


def listed(name, root):
    return find_layout(name).list_files(root)


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def defective_areas(dataset):
    """Returns the number of anomalous pixels by file name."""
    return {s.file_name: int(decode_mask(s.mask).sum()) for s in dataset if s.label}


@pytest.mark.parametrize(("normal", "tested"), [(1143, 286), (2256, 564), (1508, 377)])
def test_published_counts_include_a_quarter_of_normal_images(normal, tested):
    chosen, left = listing.split_normals(range(normal))
    assert len(chosen) == tested
    assert chosen == sorted(chosen)
    assert sorted(chosen + left) == list(range(normal))
    assert listing.split_normals(range(normal)) == (chosen, left)


def write_ksdd(root, tools):
    """Writes 399 small images, 52 of them defective, two of these in two parts."""
    for number in range(399):
        path = root / f"kos{1 + number // 8:02}/Part{number % 8}.jpg"
        tools.save(Image.new("L", (2, 6)), path)
        label = np.zeros((6, 2), np.uint8)
        label[[1, 2] if number < 2 else [5], :] = 255 * (number < 52)
        Image.fromarray(label).save(path.with_name(f"{path.stem}_label.bmp"))


def write_dagm(root, tools):
    del tools
    for split, numbers in DATASETS["dagm"].counts.items():
        for category, (normal, anomalous) in numbers.items():
            folder = root / category / split.capitalize()
            touch(folder, *(f"{number:04}.PNG" for number in range(normal + anomalous)))
            touch(folder / "Label", *(f"{number:04}_label.PNG" for number in range(anomalous)))


def write_aitex(root, tools):
    """Writes 141 clean strips, and 106 with a defect in one or two patches, one of them without its mask."""
    for number in range(141):
        strip = root / f"NODefect_images/fabric{number % 7}/{number:04}_000_00.png"
        tools.save(Image.new("L", (4096, 1)), strip)
    for number in range(106):
        name = f"{number:04}_002_00"
        tools.save(Image.new("L", (4096, 1)), root / f"Defect_images/{name}.png")
        mask = np.zeros((1, 4096), np.uint8)
        mask[0, 300 : 600 if number < 78 else 400] = 255
        if number < 105:
            tools.save(Image.fromarray(mask), root / f"Mask_images/{name}_mask.png")


def write_elpv(root, tools):
    del tools
    rows = [0.0] * 1508 + [1 / 3] * 295 + [2 / 3] * 106 + [1.0] * 715
    names = [f"images/cell{number:04}.png" for number in range(1, 2625)]
    touch(root, *names)
    lines = [f"{name}  {row}  poly\n" for name, row in zip(names, rows, strict=True)]
    (root / "labels.csv").write_text("".join(lines))


def write_sd_saliency_900(root, tools):
    del tools
    stems = [f"{kind}_{number}" for kind in ("In", "Pa", "Sc") for number in range(1, 301)]
    touch(root / "Source Images", *(f"{stem}.bmp" for stem in stems))
    touch(root / "Ground truth", *(f"{stem}.png" for stem in stems))


def write_rsdds_113(root, tools):
    del tools
    touch(root / "2D_Image/INPUT_IMG", *(f"{number}.png" for number in range(1, 114)))
    touch(root / "Ground Truth", *(f"{number}.png" for number in range(1, 114)))


@pytest.mark.parametrize("name", NAMES)
def test_full_sized_layouts_give_published_counts(name, tmp_path, tools):
    globals()[f"write_{name}"](tmp_path, tools)
    listing = listed(name, tmp_path)
    found = {split: counts.count(samples) for split, samples in listing.samples.items()}
    assert counts.compare_counts(found, DATASETS[name].counts) == []
    assert len(listing.issues) == (name == "aitex")


def test_published_counts_add_up():
    dagm = DATASETS["dagm"].counts
    assert counts.total(dagm["test"]) == (6996, 1054)
    assert [sum(pair) for pair in dagm["train"].values()] == [575] * 6 + [1150] * 4
    assert [sum(pair) for pair in dagm["test"].values()] == [575] * 6 + [1150] * 4


def test_does_not_confuse_benchmarks(make_miniature, tmp_path):
    for name in NAMES:
        make_miniature(name, tmp_path / name)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for name in NAMES:
        roots = [folder for folder in folders if find_layout(name).is_root(folder)]
        assert [root.relative_to(tmp_path).parts[0] for root in roots] == [name]


def test_parts_and_patches_cover_the_image():
    assert ksdd.thirds((500, 1267)) == [
        (0, 0, 500, 422),
        (0, 422, 500, 844),
        (0, 844, 500, 1267),
    ]
    widths = [right - left for left, _, right, _ in aitex.patches((3796, 256))]
    assert widths == [256] * 14 + [212]
    assert len(aitex.patches((4096, 256))) == 16


def test_ksdd_reports_unusable_labels_once_per_image(make_miniature, prepare, tmp_path):
    make_miniature("ksdd", tmp_path / "official")
    root = tmp_path / "official/KolektorSDD"
    whole = (root / "kos01/Part0.jpg").read_bytes()
    (root / "kos01/Part0.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "kos01/Part5_label.bmp").unlink()
    Image.new("L", (5, 5)).save(root / "kos20/Part0_label.bmp")
    Image.new("L", (5, 5)).save(root / "kos20/Part7_label.bmp")
    dataset = prepare("ksdd", root)
    issues = {issue.file: issue.kind for issue in dataset.issues}
    assert len(dataset.issues) == len(issues) == 4
    assert issues["kos01/Part0.jpg"] == "image_unreadable"
    assert issues["kos01/Part5.jpg"] == "mask_missing"
    assert issues["kos20/Part0.jpg"] == "mask_size"
    assert issues["kos20/Part7_label.bmp"] == "mask_unused"
    assert {name.rsplit("_", 1)[0] for name in (s.file_name for s in dataset)} == {"kos20/Part4"}


def test_dagm_detects_missing_mask_from_the_list(make_miniature, prepare, tmp_path):
    miniature = make_miniature("dagm", tmp_path / "official")
    root = tmp_path / "official/DAGM_KaggleUpload"
    (root / "Class1/Test/Label/0005_label.PNG").unlink()
    (root / "Class10/Test").rename(root / "Class10/test")
    dataset = prepare("dagm", root)
    assert len(dataset) == sum(one.split == "test" for one in miniature.samples)
    assert dataset.issues == (Issue("mask_missing", "Class1/Test/0005.PNG"),)
    lost = next(s for s in dataset if s.file_name == "Class1/Test/0005.PNG")
    assert (lost.label, lost.has_mask) == (1, False)
    assert dataset.categories == ("Class1", "Class10")


def test_aitex_reads_nested_copies_and_logs_excluded_patches(
    make_miniature, prepare, tmp_path, caplog
):
    make_miniature("aitex", tmp_path / "official")
    for name in ("Defect_images", "Mask_images"):
        (tmp_path / "official" / name).rename(tmp_path / "moved")
        shutil.move(tmp_path / "moved", tmp_path / "nested" / name / name)
    clean = tmp_path / "official/NODefect_images"
    shutil.copytree(clean / "2306881-210020u", tmp_path / "nested/NODefect_images")
    with caplog.at_level("INFO", logger="absl"):
        dataset = prepare("aitex", tmp_path / "nested")
    # Four patches of each of three strips, minus the five marked ones.
    assert "defect-free patches of defective strips (7)." in caplog.text
    assert [sample.label for sample in dataset] == [0, 1, 1, 1, 1, 1]
    assert dataset[1].file_name == "Defect_images/Defect_images/0001_002_00_1.png"
    assert dataset[0].file_name.startswith("NODefect_images/0002_000_00_")


def test_aitex_error_says_how_to_unpack(prepare, tmp_path):
    for archive in DATASETS["aitex"].archives[:2]:
        (tmp_path / archive.file_name).write_bytes(b"7z")
    with pytest.raises(UserError, match=r"Mask_images\.7z \(unpack with 7z x"):
        prepare("aitex", tmp_path)


def test_elpv_reports_differences_between_list_and_folder(
    make_miniature, prepare, tmp_path, caplog
):
    make_miniature("elpv", tmp_path / "official")
    root = next(tmp_path.rglob("labels.csv")).parent
    (root / "images/cell0009.png").rename(root / "images/cell1000.png")
    with caplog.at_level("INFO", logger="absl"):
        dataset = prepare("elpv", root)
    assert "excluded 2 cells that may be defective" in caplog.text
    assert {issue.file: issue.kind for issue in dataset.issues} == {
        "images/cell0009.png": "image_missing",
        "images/cell1000.png": "image_unused",
    }
    with open(root / "labels.csv", "a") as file:
        file.write("images/cell0010.png,0.0,mono\n")
    with pytest.raises(UserError, match=r"labels\.csv is not the list of ELPV, .*'images/cell0010"):
        prepare("elpv", root, data_dir=tmp_path / "other")


def test_reads_repacked_sd_saliency_900(make_miniature, prepare, tmp_path):
    miniature = make_miniature("sd_saliency_900", tmp_path / "official")
    official = tmp_path / "official/MCITF-master/SD-saliency-900"
    for sample in miniature.samples:
        stem = pathlib.Path(sample.file_name).stem
        for old, new in (
            (f"Source Images/{stem}.bmp", f"test/{sample.defect}/{stem}.bmp"),
            (f"Ground truth/{stem}.png", f"ground_truth/{sample.defect}/{stem}.png"),
        ):
            path = tmp_path / "repacked/iron" / new
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(official / old, path)
    before = prepare("sd_saliency_900", official)
    after = prepare("sd_saliency_900", tmp_path / "repacked", data_dir=tmp_path / "other")
    assert after[0].file_name == "iron/test/inclusion/In_1.bmp"
    assert [(s.image, s.mask, s.defect) for s in before] == [
        (s.image, s.mask, s.defect) for s in after
    ]


def test_multipart_rsdds_error_says_how_to_unpack(prepare, tmp_path):
    touch(tmp_path, *(f"2D_Image.zip.{part:03}" for part in range(1, 10)), "Ground Truth.zip")
    with pytest.raises(UserError) as error:
        prepare("rsdds_113", tmp_path)
    assert "\n" not in str(error.value)
    assert '7z x -pneurail 2D_Image.zip.001 && 7z x -pneurail "Ground Truth.zip"' in str(
        error.value
    )


# Values of the real files were computed with Pillow and numpy only.


def test_reads_real_ksdd(real_data, prepare, tmp_path):
    dataset = prepare("ksdd", real_data("KolektorSDD"))
    assert len(dataset.issues) == len(dataset.notes) == 0
    assert counts.count(dataset) == {"ksdd": (8, 10)}
    train = PreparedDataset("ksdd", tmp_path / "data", "train")
    assert counts.count(train) == {"ksdd": (24, 0)}
    assert defective_areas(dataset) == {
        "kos15/Part3_1.png": 193,
        "kos15/Part3_2.png": 3244,
        "kos16/Part5_1.png": 4128,
        "kos20/Part4_1.png": 3692,
        "kos34/Part0_1.png": 2988,
        "kos40/Part5_1.png": 4455,
        "kos43/Part1_1.png": 4360,
        "kos44/Part6_1.png": 3665,
        "kos46/Part7_1.png": 1583,
        "kos48/Part5_1.png": 6457,
    }


def test_reads_real_elpv(real_data, prepare, tmp_path):
    dataset = prepare("elpv", real_data("elpv"))
    assert len(dataset.issues) == 0
    assert counts.count(dataset) == {"elpv": (8, 24)}
    train = PreparedDataset("elpv", tmp_path / "data", "train")
    assert counts.count(train) == {"elpv": (24, 0)}
    kinds = [sample.defect for sample in dataset if sample.label]
    assert (kinds.count("mono"), kinds.count("poly")) == (12, 12)


def test_reads_real_sd_saliency_900(real_data, prepare):
    dataset = prepare("sd_saliency_900", real_data("SD-saliency-900"))
    assert len(dataset.issues) == len(dataset.notes) == 0
    assert counts.count(dataset) == {"sd_saliency_900": (0, 36)}
    areas = dict.fromkeys(("inclusion", "patches", "scratches"), 0)
    for sample in dataset:
        areas[sample.defect] += int(decode_mask(sample.mask).sum())
    assert areas == {"inclusion": 25955, "patches": 113963, "scratches": 31613}


def test_reads_real_rsdds_masks_without_images(real_data, prepare):
    root = real_data("rsdds_113_masks_only")
    listing = listed("rsdds_113", root)
    assert listing.samples == {}
    assert len(listing.issues) == 56
    assert {issue.kind for issue in listing.issues} == {"mask_unused"}
    with pytest.raises(UserError, match=r"does not contain RSDDs-113.*2D_Image/INPUT_IMG") as error:
        prepare("rsdds_113", root)
    assert "\n" not in str(error.value)
