"""Tests of polyp, skin and thyroid benchmarks: similar layouts, differing copies, and real files."""

import functools
import hashlib
import http.server
import shutil
import threading
import zipfile

import pytest

from zsad_jax.data.benchmarks.builders import BUILDERS
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.layouts import find_layout
from zsad_jax.data.preprocess import decode_mask
from zsad_jax.utils import downloads
from zsad_jax.utils.errors import UserError

NAMED = {  # folders that distinguish datasets with images beside masks
    "cvc_colondb": "CVC-ColonDB",
    "cvc_clinicdb": "CVC-612",
    "kvasir": "Kvasir",
    "endo": "EndoTect_2020_Segmentation_Test_Dataset",
}


def write(tools, folder, stems, *, images="images/{}.png", masks="masks/{}.png"):
    for stem in stems:
        tools.save(tools.draw(0), folder / images.format(stem))
        tools.save(tools.draw_mask(0), folder / masks.format(stem))


def file_names(dataset):
    return [sample.file_name for sample in dataset]


def areas(dataset):
    return [(s.file_name, int(decode_mask(s.mask).sum())) for s in dataset]


def test_finds_own_folder_among_several_datasets(tools, prepare, tmp_path):
    for key, folder in NAMED.items():
        write(tools, tmp_path / "sets" / "colon" / folder, [f"{key}_{i}" for i in range(2)])
    write(tools, tmp_path / "sets" / "colon" / "ETIS-LaribPolypDB", ["another"])
    for key in NAMED:
        names = file_names(prepare(key, tmp_path / "sets"))
        assert names == [f"images/{key}_0.png", f"images/{key}_1.png"]


@pytest.mark.parametrize("name", NAMED)
def test_reads_images_beside_masks_if_given_explicitly(name, tools, prepare, tmp_path):
    write(tools, tmp_path / "above" / "Kvasir-instrument", ["2", "10"])
    dataset = prepare(name, tmp_path / "above" / "Kvasir-instrument")
    assert file_names(dataset) == ["images/2.png", "images/10.png"]
    with pytest.raises(UserError) as error:
        prepare(name, tmp_path / "above", data_dir=tmp_path / "other")
    assert DATASETS[name].tree in str(error.value)


def test_reads_archive_of_images_and_masks_only(tools, prepare, pack, tmp_path):
    write(tools, tmp_path / "official", ["1"])
    archive = pack(tmp_path / "official", tmp_path / "CVC-ColonDB.tar")
    assert file_names(prepare("cvc_colondb", archive)) == ["images/1.png"]


def test_named_subfolder_precedes_the_folder_itself(tools, prepare, tmp_path):
    write(tools, tmp_path / "sets", ["unknown"])
    write(tools, tmp_path / "sets" / "Kvasir-SEG", ["polyp"])
    assert file_names(prepare("kvasir", tmp_path / "sets")) == ["images/polyp.png"]


def test_clinicdb_in_two_formats_is_read_once(tools, prepare, tmp_path):
    for kind, suffix in (("TIF", "tif"), ("PNG", "png")):
        images, masks = f"Original/{{}}.{suffix}", f"Ground Truth/{{}}.{suffix}"
        write(tools, tmp_path / "kaggle" / kind, ["1", "2", "10"], images=images, masks=masks)
    dataset = prepare("cvc_clinicdb", tmp_path / "kaggle")
    assert file_names(dataset) == ["Original/1.png", "Original/2.png", "Original/10.png"]
    assert not dataset.issues


def test_clinicdb_rar_error_names_the_command(prepare, tmp_path):
    archive = tmp_path / "CVC-ClinicDB.zip"
    archive.write_bytes(b"Rar!\x1a\x07\x01\x00" + bytes(600))
    with pytest.raises(UserError, match=r"not a tar or zip archive .*\(7z x CVC-ClinicDB\.rar\)"):
        prepare("cvc_clinicdb", archive)


def test_colondb_pairs_by_number_with_any_suffix(make_miniature, tools, prepare, tmp_path):
    make_miniature("cvc_colondb", tmp_path)
    root = tmp_path / "CVC-ColonDB" / "CVC-ColonDB"
    (root / "p2.tiff").unlink()
    tools.save(tools.draw_mask(0), root / "p55.tiff")
    dataset = prepare("cvc_colondb", root)
    found = [(sample.file_name, sample.has_mask) for sample in dataset]
    with_mask = [("1.tiff", True), ("2.tiff", False), ("10.tiff", True), ("77.tif", True)]
    assert found == [*with_mask, ("97.tif", True)]
    assert {issue.file: issue.kind for issue in dataset.issues} == {
        "2.tiff": "mask_missing",
        "p55.tiff": "mask_unused",
        "overview.png": "image_unused",
    }


def test_reports_unpaired_images_and_masks(make_miniature, tools, tmp_path):
    make_miniature("kvasir", tmp_path)
    root = tmp_path / "Kvasir-SEG"
    (root / "masks/cju0qoxqj9q6s0835b43399p4.jpg").unlink()
    tools.save(tools.draw_mask(0), root / "masks/extra.jpg")
    listing = find_layout("kvasir").list_files(root)
    assert [sample.has_mask for sample in listing.samples["test"]] == [True, False, True]
    assert {issue.file: issue.kind for issue in listing.issues} == {
        "images/cju0qoxqj9q6s0835b43399p4.jpg": "mask_missing",
        "masks/extra.jpg": "mask_unused",
    }


def test_reads_isic_in_layout_of_anomalyclip(make_miniature, prepare, tmp_path):
    miniature = make_miniature("isic", tmp_path / "isic" / "skin")
    skin = tmp_path / "isic" / "skin"
    (skin / "test").mkdir()
    (skin / "ISBI2016_ISIC_Part1_Test_Data").rename(skin / "test" / "melanoma")
    dataset = prepare("isic", tmp_path / "isic")
    assert len(dataset) == 3
    assert not dataset.issues
    for sample, expected in zip(dataset, miniature.samples, strict=True):
        assert sample.file_name == f"test/melanoma/{expected.file_name.split('/')[1]}"
        assert (decode_mask(sample.mask) == expected.mask).all()
        assert (sample.category, sample.defect) == ("isic", "lesion")


@pytest.fixture
def isic_archives(make_miniature, tmp_path, monkeypatch, change_facts):
    """Serves the two archives of ISIC from a local server, with matching digests."""
    make_miniature("isic", tmp_path / "isic")
    (tmp_path / "served").mkdir()
    serve = functools.partial(QuietHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        archives = []
        for archive in DATASETS["isic"].archives:
            path = tmp_path / "served" / archive.file_name
            with zipfile.ZipFile(path, "w") as file:
                for one in sorted((tmp_path / "isic" / path.stem).iterdir()):
                    file.write(one, one.relative_to(tmp_path / "isic"))
            url = f"http://127.0.0.1:{server.server_port}/{archive.file_name}"
            md5 = hashlib.md5(path.read_bytes()).hexdigest()
            archives.append(archive._replace(md5=md5, url=url))
        change_facts("isic", archives=lambda known: archives)
        monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
        yield tmp_path / "served"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_isic_has_two_archives(isic_archives, prepare, tmp_path):
    sources = {
        "folder": tmp_path / "isic",
        "archives": isic_archives,
        "one": sorted(isic_archives.iterdir())[0],
        "fetched": None,
    }
    found = {
        kind: list(prepare("isic", source, data_dir=tmp_path / kind))
        for kind, source in sources.items()
    }
    assert len(found["folder"]) == 3
    assert all(samples == found["folder"] for samples in found.values())


def test_rejects_archive_with_other_md5(isic_archives, prepare, tmp_path):
    path = isic_archives / "ISBI2016_ISIC_Part1_Test_GroundTruth.zip"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"MD5 is not .* was deleted"):
        prepare("isic", None)
    left = sorted(path.name for path in (tmp_path / "data/downloads").glob("*GroundTruth*"))
    assert left == []
    with pytest.raises(UserError, match=r"GroundTruth\.zip is not the published .*MD5"):
        prepare("isic", isic_archives)


def test_tn3k_without_training_images(make_miniature, prepare, tmp_path):
    make_miniature("tn3k", tmp_path / "official")
    tn3k = tmp_path / "official" / "Thyroid Dataset" / "tn3k"
    for kind in ("image", "mask"):
        shutil.rmtree(tn3k / f"trainval-{kind}")
        (tn3k / f"test-{kind}").rename(tn3k / f"Test-{kind}")
    dataset = prepare("tn3k", tmp_path / "official")
    assert file_names(dataset) == [f"Test-image/000{i}.jpg" for i in range(3)]
    prepared = BUILDERS["tn3k"](data_dir=tmp_path / "data")
    assert list(prepared.info.splits) == ["test"]


def test_reads_real_colondb(real_data, prepare):
    dataset = prepare("cvc_colondb", real_data("CVC-ColonDB"))
    assert areas(dataset) == [
        ("79.tif", 4734),
        ("97.tif", 5638),
        ("146.tiff", 16338),
        ("186.tiff", 3899),
        ("287.tiff", 26654),
        ("330.tiff", 102053),
        ("336.tiff", 105809),
        ("355.tiff", 1394),
    ]
    assert {(s.label, s.category, s.defect, s.subject) for s in dataset} == {
        (1, "cvc_colondb", "polyp", "")
    }
    assert not dataset.issues
    assert not dataset.notes


def test_reads_real_clinicdb_copy_with_other_names(real_data, prepare):
    dataset = prepare("cvc_clinicdb", real_data("cvc612_resized"))
    assert areas(dataset) == [
        ("images/fine_3_3_fram.jpg", 27928),
        ("images/fine_3_5_fram.jpg", 24886),
        ("images/fine_3_6_fram.jpg", 20636),
        ("images/fine_3_10_fram.jpg", 18408),
        ("images/fine_3_11_fram.jpg", 17805),
        ("images/fine_3_13_fram.jpg", 14514),
        ("images/fine_3_14_fram.jpg", 23883),
        ("images/fine_3_15_fram.jpg", 36916),
        ("images/fine_3_19_fram.jpg", 18522),
        ("images/fine_3_20_fram.jpg", 18622),
    ]
    assert not dataset.issues
    assert len(dataset.notes) == 10


def test_real_kvasir_masks_have_soft_edges(real_data, prepare):
    dataset = prepare("kvasir", real_data("Kvasir-SEG"))
    assert areas(dataset) == [
        ("images/cju0qkwl35piu0993l0dewei2.jpg", 94684),
        ("images/cju0qoxqj9q6s0835b43399p4.jpg", 393974),
        ("images/cju0qx73cjw570799j4n5cjze.jpg", 106837),
    ]
    assert not dataset.issues
    levels = [note.detail for note in dataset.notes]
    assert levels == [f"{n} levels, threshold 0" for n in (18, 16, 16)]


def test_does_not_confuse_real_datasets_in_one_folder(real_data, prepare):
    parent = real_data("CVC-ColonDB").parent
    sizes = {name: len(prepare(name, parent)) for name in ("cvc_colondb", "cvc_clinicdb", "kvasir")}
    assert sizes == {"cvc_colondb": 8, "cvc_clinicdb": 10, "kvasir": 3}
    for name in ("endo", "isic", "tn3k"):
        with pytest.raises(UserError, match="does not contain"):
            prepare(name, parent)
