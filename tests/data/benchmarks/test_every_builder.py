"""Tests of every benchmark on a miniature of its official layout."""

import pathlib

import numpy as np
import pytest

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.builders import BUILDERS
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.layouts import find_layout
from zsad_jax.data.benchmarks.prepared import PreparedDataset
from zsad_jax.data.preprocess import decode_mask, open_image
from zsad_jax.data.protocols import prompt_name
from zsad_jax.utils.errors import UserError

NAMES = sorted(path.stem for path in (pathlib.Path(__file__).parent / "miniatures").glob("*.py"))


def test_each_benchmark_has_a_miniature():
    assert benchmarks.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_samples_match_construction(name, make_miniature, prepare, tmp_path):
    miniature = make_miniature(name, tmp_path / "official")
    prepare(name, tmp_path / "official", num_workers=2)
    builder = BUILDERS[name]
    splits = builder(data_dir=tmp_path / "data").info.splits
    opened = {split: PreparedDataset(name, tmp_path / "data", split) for split in splits}
    found = {(split, s.file_name): s for split, samples in opened.items() for s in samples}
    assert sum(map(len, opened.values())) == len(found) == len(miniature.samples)
    for expected in miniature.samples:
        split = expected.split or next(key[0] for key in found if key[1] == expected.file_name)
        check_sample(name, found[split, expected.file_name], expected)
    dataset = opened["test"]
    for expected, found in ((miniature.issues, dataset.issues), (miniature.notes, dataset.notes)):
        assert len(found) == len(expected), found
        for file_name, kind in expected:
            assert [r for r in found if r.file.endswith(file_name) and r.kind == kind], found
    for samples in opened.values():
        assert_grouped([sample.category for sample in samples])


def check_sample(name, sample, expected):
    assert sample.category == expected.category
    assert sample.label == expected.label
    assert sample.has_mask == expected.has_mask
    assert (sample.subject, sample.slice) == (expected.subject, expected.slice)
    assert sample.prompt_name == prompt_name(expected.category, dataset=name)
    assert expected.defect is None or sample.defect == expected.defect
    np.testing.assert_array_equal(
        np.asarray(open_image(sample.image).image.convert("RGB")), expected.image
    )
    if expected.label and expected.has_mask:
        np.testing.assert_array_equal(decode_mask(sample.mask), expected.mask)
    else:
        assert sample.mask is None


def assert_grouped(categories):
    runs = [one for i, one in enumerate(categories) if i == 0 or categories[i - 1] != one]
    assert len(runs) == len(set(runs))


@pytest.mark.parametrize("name", NAMES)
def test_preparation_does_not_depend_on_threads(name, make_miniature, prepare, tmp_path):
    """Varies the location of the source too; messages contain no absolute path."""
    written = []
    for workers in (1, 4):
        make_miniature(name, tmp_path / f"from_{workers}")
        data_dir = tmp_path / f"to_{workers}"
        prepare(name, tmp_path / f"from_{workers}", data_dir=data_dir, num_workers=workers)
        files = [*data_dir.glob(f"{name}/*/*.array_record*"), *data_dir.glob("*/*/metadata.json")]
        written.append({path.name: path.read_bytes() for path in files})
    assert len(written[0]) > 1
    assert written[0] == written[1]


@pytest.mark.parametrize("name", NAMES)
def test_protocol_levels_match_the_files(name, make_miniature, prepare, tmp_path):
    make_miniature(name, tmp_path / "official")
    dataset = prepare(name, tmp_path / "official")
    labels = {sample.label for sample in dataset}
    levels = DATASETS[name].levels
    assert ("image" in levels) == (labels == {0, 1})
    assert ("pixel" in levels) == any(sample.has_mask and sample.label for sample in dataset)


@pytest.mark.parametrize("name", NAMES)
def test_rejects_empty_folder(name, prepare, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        prepare(name, tmp_path / "empty")
    message = str(error.value)
    assert "\n" not in message
    assert DATASETS[name].title in message
    assert DATASETS[name].tree in message


def test_does_not_confuse_benchmarks(make_miniature, tmp_path):
    """Allows one folder with many benchmarks to be the source of each of them."""
    for name in NAMES:
        make_miniature(name, tmp_path / name)
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    for name in NAMES:
        is_root = find_layout(name).is_root
        assert {path.relative_to(tmp_path).parts[0] for path in folders if is_root(path)} == {name}


@pytest.mark.parametrize("name", NAMES)
def test_archive_gives_same_samples(name, make_miniature, prepare, pack, tmp_path, change_facts):
    """Packs the archive here, so that its size and digest differ from the published ones."""
    make_miniature(name, tmp_path / "official")
    path = pack(tmp_path / "official", tmp_path / "packed.tar")
    changes = {"file_name": "packed.tar", "sha256": None, "md5": None, "size": None}
    change_facts(name, archives=lambda known: [known[0]._replace(**changes)])
    from_archive = prepare(name, path, data_dir=tmp_path / "of_archive")
    from_folder = prepare(name, tmp_path / "official", data_dir=tmp_path / "of_folder")
    assert list(from_archive) == list(from_folder)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_image_is_reported_and_others_are_kept(name, make_miniature, prepare, tmp_path):
    make_miniature(name, tmp_path / "official")
    whole = prepare(name, tmp_path / "official", data_dir=tmp_path / "whole")
    path = file_of(whole[-1].file_name, tmp_path / "official")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    damaged = prepare(name, tmp_path / "official", data_dir=tmp_path / "damaged")
    added = [issue for issue in damaged.issues if issue not in whole.issues]
    assert str(tmp_path) not in str(added)
    assert {issue.kind for issue in added} & {"image_unreadable", "mask_unreadable"}, added
    # A damaged single image is kept and reported in the evaluation; strips and volumes cannot be cut.
    lost = {sample.file_name for sample in whole} - {sample.file_name for sample in damaged}
    assert all(file_of(one, tmp_path / "official") == path for one in lost)


@pytest.mark.parametrize("name", NAMES)
def test_reports_stray_files(name, make_miniature, prepare, tools, tmp_path):
    make_miniature(name, tmp_path / "official")
    before = prepare(name, tmp_path / "official", data_dir=tmp_path / "before")
    folder = file_of(before[0].file_name, tmp_path / "official").parent
    for name_below in ("stray.heic", "below/further/stray.png"):
        tools.save(tools.draw(0), folder / name_below, format="PNG")
    after = prepare(name, tmp_path / "official", data_dir=tmp_path / "after")
    assert list(after) == list(before)
    added = [issue for issue in after.issues if issue not in before.issues]
    assert sorted((one.file.rpartition("/")[2], one.kind) for one in added) == [
        ("stray.heic", "format_unsupported"),
        ("stray.png", "image_unused"),
    ]


def file_of(file_name, folder):
    """Returns the file of a sample: its own, or the strip or volume that contains it."""
    part = pathlib.PurePosixPath(file_name)
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: len(p.parts)
    )
    own = [path for path in files if path.as_posix().endswith(f"/{part}")]
    of_strip = [
        path
        for path in files
        if (path.parent.name, path.stem) == (part.parent.name, part.stem.rpartition("_")[0])
    ]
    of_volume = [path for path in files if path.name.split(".")[0] == part.parent.name]
    return (own or of_strip or of_volume)[0]
