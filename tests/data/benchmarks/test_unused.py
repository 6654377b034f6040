"""Tests of files that are not part of any sample: reported or counted, unless the layout excludes them."""

import pathlib
import shutil

import pytest

from zsad_jax.data.benchmarks.layouts import find_layout
from zsad_jax.data.benchmarks.listing import Listing
from zsad_jax.data.benchmarks.unused import NAMED_ALONE, PLACES, find_unused
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue

ALONE = "image_unused"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listing_of(root, *names, **further):
    return Listing(
        root, samples={"test": [Sample(image=str(root / name)) for name in names]}, **further
    )


def unused(listing, *excluded):
    return {issue.file: issue.kind for issue in find_unused(listing, excluded)}


def test_reports_only_unused_images(tmp_path):
    names = ["a/1.png", "m/1.png", "m/1_2.bmp", "strip.tif", "reported/1.png", "reported_too.jpg"]
    touch(tmp_path, *names, "a/2.PNG", "a/notes.txt", "a/.hidden.png", "__MACOSX/a/._1.png")
    masks = (str(tmp_path / "m/1.png"), str(tmp_path / "m/1_2.bmp"))
    sample = Sample(image=str(tmp_path / "a/1.png"), mask=masks)
    listing = Listing(
        tmp_path,
        samples={"train": [sample], "test": [Sample(image=b"made", mask=b"made")]},
        known={str(tmp_path / "strip.tif")},
        issues=[Issue("folder_empty", "reported"), Issue("mask_missing", "reported_too.jpg")],
    )
    assert unused(listing) == {"a/2.PNG": ALONE}


def test_lists_few_files_and_counts_many(tmp_path):
    touch(tmp_path, "a/good/1.png", *(f"a/good/{i}.jpg" for i in range(NAMED_ALONE)))
    touch(tmp_path, "b/good/1.png", *(f"b/good/{i}.jpg" for i in range(NAMED_ALONE + 1)))
    touch(tmp_path, *(f"strange/{i}/{i}.png" for i in range(9)), "odd/deep/1.png")
    touch(tmp_path, *(f"{i}.tif" for i in range(7)), "b/good/x.heic", "b/good/y.DCM")
    touch(tmp_path, *(f"heic/{i}.HEIC" for i in range(8)))
    listing = listing_of(tmp_path, "a/good/1.png", "b/good/1.png")
    assert unused(listing) == {
        ".": "image_unused",
        **{f"a/good/{i}.jpg": ALONE for i in range(NAMED_ALONE)},
        "b/good": "image_unused",
        "b/good/x.heic": "format_unsupported",
        "b/good/y.DCM": "format_unsupported",
        "heic": "format_unsupported",
        "odd/deep/1.png": ALONE,
        "strange": "image_unused",
    }


def test_many_folders_are_reported_by_their_parents(tmp_path):
    used = [f"{top}/{i:03}/a.png" for top in ("x", "y") for i in range(PLACES)]
    touch(tmp_path, *used, *(name.replace("a.png", "b.png") for name in used))
    listing = listing_of(tmp_path, *used)
    many = "image_unused"
    assert unused(listing) == {"x": many, "y": many}


def test_does_not_report_excluded_files(tmp_path):
    touch(tmp_path, "a/1.png", "PRED/x/1.png", "a/masks/1.png", "a/cp1.tiff", "a/cp_x.tiff")
    listing = listing_of(tmp_path, "a/1.png")
    assert unused(listing, "pred", "*/masks", "*/cp[0-9]*.tiff") == {"a/cp_x.tiff": ALONE}


def test_relative_root_and_cyclic_links(tmp_path, monkeypatch):
    touch(tmp_path / "set", "a/1.png", "a/2.png")
    touch(tmp_path / "elsewhere", "3.png")
    (tmp_path / "set/a/again").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    expected = {"a/2.png": ALONE, "linked/3.png": ALONE}
    for folder, root in ((tmp_path, "set"), (tmp_path / "set", "."), (tmp_path / "set/a", "..")):
        monkeypatch.chdir(folder)
        root = pathlib.Path(root)
        assert unused(listing_of(root, "a/1.png")) == expected


def test_reports_misplaced_files_in_mvtec_layout(make_miniature, prepare, tools, tmp_path):
    make_miniature("mvtec_ad", tmp_path / "official")
    root = tmp_path / "official/mvtec_anomaly_detection"
    for name in ("test/loose.png", "test/broken_large/more/1.png", "ground_truth/loose_mask.png"):
        tools.save(tools.draw(0), root / "bottle" / name)
    tools.save(tools.draw_mask(0), root / "bottle/ground_truth/gone/000_mask.png")
    tools.save(tools.draw_mask(0), root / "bottle/ground_truth/good/000_mask.png")
    touch(root, "bottle/test/good/photo.heic")
    shutil.copytree(root / "bottle", root / "botle")
    assert {issue.file: issue.kind for issue in prepare("mvtec_ad", root).issues} == {
        "botle": "image_unused",
        "botle/test/good/photo.heic": "format_unsupported",
        "bottle/ground_truth/gone/000_mask.png": ALONE,
        "bottle/ground_truth/loose_mask.png": ALONE,
        "bottle/test/broken_large/more/1.png": ALONE,
        "bottle/test/good/photo.heic": "format_unsupported",
        "bottle/test/loose.png": ALONE,
    }


def test_reports_images_outside_visa_split_and_ksdd_folders(
    make_miniature, prepare, tools, tmp_path
):
    for name in ("visa", "ksdd"):
        make_miniature(name, tmp_path / name)
    tools.save(tools.draw(0), tmp_path / "visa/candle/Data/Images/Normal/9999.JPG")
    tools.save(tools.draw(0), tmp_path / "ksdd/KolektorSDD/others/Part0.jpg")
    visa, ksdd = (prepare(name, tmp_path / name) for name in ("visa", "ksdd"))
    assert visa.issues == (Issue(ALONE, "candle/Data/Images/Normal/9999.JPG"),)
    assert ksdd.issues == (Issue(ALONE, "others/Part0.jpg"),)


def test_excludes_other_sizes_of_real_iad_only(make_miniature, prepare, tools, tmp_path):
    make_miniature("real_iad", tmp_path)
    for folder in ("realiad_512/unknown", "realiad_256/unknown"):
        tools.save(tools.draw(0), tmp_path / folder / "1.jpg")
    excluded = find_layout("real_iad").excluded(tmp_path)
    assert set(excluded) == {"realiad_1024", "realiad_256", "realiad_raw"}
    assert prepare("real_iad", tmp_path).issues == (Issue(ALONE, "realiad_512/unknown/1.jpg"),)


@pytest.mark.parametrize(
    ("name", "strange"),
    [
        ("br35h", "Pred/pred7.jpg"),
        ("brainmri", "brain_tumor_dataset/yes/Y1.JPG"),
        ("isic", "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg"),
        ("isic", "ISBI2016_ISIC_Part3B_Test_Data/ISIC_0000003.jpg"),
        ("lag", "LAG_database_part_1/non_glaucoma/attention_map/9999.jpg"),
        ("rsdds_113", "Depthmap/INPUT/9.png"),
        ("covid19", "COVID-19_Radiography_Dataset/Viral pneumonia/1.png"),
        ("msd_lung", "Task06_Lung/imagesTs/lung_999.nii.gz"),
    ],
)
def test_does_not_report_files_excluded_by_benchmark(
    name, strange, make_miniature, prepare, tmp_path
):
    make_miniature(name, tmp_path / "official")
    before = prepare(name, tmp_path / "official", data_dir=tmp_path / "before")
    touch(tmp_path / "official", strange)
    after = prepare(name, tmp_path / "official", data_dir=tmp_path / "after")
    assert after.issues == before.issues
