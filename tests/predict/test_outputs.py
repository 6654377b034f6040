import json
import os

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data.preprocess import Preprocess
from zsad_jax.predict.outputs import (
    Journal,
    Writer,
    is_output,
    output_name,
    remove_unused,
    resize_map,
)
from zsad_jax.predict.score import ScoredImage, read_image
from zsad_jax.utils.images import MARGIN, colorize


def image_file(path, size=(30, 20), color=(90, 120, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return str(path)


def write(writer, path, score, anomaly_map, seconds):
    """Writes the outputs of a file with this score and map; returns its record."""
    file = read_image(path, Preprocess(image_size=8), writer.map_size)
    return writer.write(ScoredImage(file, score, anomaly_map, seconds))


def spot(row, column, side=16):
    """Returns a map with high values in one place."""
    anomaly_map = np.zeros((side, side), np.float32)
    anomaly_map[row, column] = 1
    return anomaly_map


@pytest.fixture
def writer(tmp_path):
    return Writer(folder=tmp_path / "out", scale=(0.0, 1.0), map_size=1024)


@pytest.mark.parametrize(
    ("size", "longest", "shape"),
    [
        ((500, 1270), 1024, (1024, 403)),
        ((40, 30), 1024, (30, 40)),
        ((10000, 3), 100, (1, 100)),
        ((1, 1), 9, (1, 1)),
    ],
)
def test_map_keeps_aspect_ratio_of_image(size, longest, shape):
    assert resize_map(spot(3, 4), size, longest).shape == shape


def test_map_is_aligned_with_image():
    resized = resize_map(spot(2, 12), (160, 320), 1024)  # 16 x 16 to 320 x 160
    assert resized.dtype == np.float32
    rows, columns = np.nonzero(resized == resized.max())
    assert abs(rows.mean() - (2.5 / 16 * 320 - 0.5)) < 1
    assert abs(columns.mean() - (12.5 / 16 * 160 - 0.5)) < 1


def test_constant_map_stays_constant():
    resized = resize_map(np.full((7, 7), 0.3, np.float32), (33, 21), 30)
    np.testing.assert_allclose(resized, 0.3, rtol=1e-6)


def test_images_with_same_name_have_different_outputs(tmp_path):
    paths = [
        tmp_path / name for name in ("a/good/0.png", "b/good/0.png", "a/good/0.jpg", "a/bad/0.png")
    ]
    names = [output_name(str(path)) for path in paths]
    assert len(set(names)) == 4
    assert all(name.startswith(("good_0-", "bad_0-")) for name in names)
    assert len(output_name("/x/" + "ü" * 90 + ".png").encode()) < 200


def test_written_outputs_of_an_image(writer, tmp_path):
    path = image_file(tmp_path / "in" / "wide image.png", (60, 20))
    row = write(writer, path, 0.123456789, spot(8, 14), 0.25)
    files = {"map", "figure", "thumbnail", "raw_map"}
    assert files <= row.keys()
    assert not {"decision", "threshold", "mask", "regions", "error"} & row.keys()
    assert row["path"] == path
    assert row["score"] == 0.12345679
    assert row["size"] == [60, 20]
    assert row["time"] == 0.25
    assert np.load(writer.folder / row["map"]).shape == (20, 60)
    assert not (writer.folder / "masks").exists()


def test_saturated_scores_keep_their_digits(writer, tmp_path):
    path = image_file(tmp_path / "a.png")
    journal = Journal(tmp_path / "rows.jsonl")
    for score in (3e-7, 4e-8):
        journal.add(write(writer, path, float(np.float32(score)), spot(8, 14), 0.0))
    lines = journal.path.read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [3e-7, 4e-8]


def test_recognizes_only_own_outputs_as_results(writer, tmp_path):
    row = write(writer, image_file(tmp_path / "a.png"), 0.5, spot(8, 14), 0.0)
    figure = writer.folder / row["figure"]
    for kind in ("figure", "thumbnail", "map"):
        assert is_output(writer.folder / row[kind])
    moved = figure.rename(tmp_path / "renamed.jpg")
    assert is_output(moved)
    assert not is_output(image_file(figure.with_name("own-20240131.jpg")))
    for name in ("none.jpg", "predictions.csv", "own-20240131.npy"):
        (tmp_path / name).touch()
        assert not is_output(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    assert not is_output(tmp_path / "pipe.png")


def test_figure_shows_image_and_map_at_same_place(writer, tmp_path):
    path = image_file(tmp_path / "gray.png", (300, 600), (100, 100, 100))
    row = write(writer, path, 0.5, spot(2, 12), 0.0)
    figure = np.asarray(Image.open(writer.folder / row["figure"])).astype(int)
    top = len(figure) - MARGIN - 600
    panels = [figure[top : top + 600, left : left + 300] for left in (14, 322, 630)]
    assert np.abs(panels[0] - 100).max() <= 16  # the figure is a JPEG
    for panel, plain in zip(panels[1:], (0, 60), strict=True):
        away = np.abs(panel - plain).sum(axis=-1)
        assert away[-1, 0] < 20  # low values leave the gray of the image
        row_of, column_of = np.unravel_index(away.argmax(), away.shape)
        assert abs(row_of - 2.5 / 16 * 600) < 8
        assert abs(column_of - 12.5 / 16 * 300) < 8


def test_colors_do_not_depend_on_the_image(writer, tmp_path):
    path = image_file(tmp_path / "a.png")
    figures = []
    for factor in (0.1, 0.2):
        row = write(writer, path, 0.5, np.full((8, 8), factor, np.float32), 0.0)
        figures.append(np.asarray(Image.open(writer.folder / row["figure"])))
    assert (figures[0] != figures[1]).any()
    color = colorize(np.full((1, 1), 0.2), scale=(0, 1))[0, 0].astype(int)
    assert np.abs(figures[1][-40] - color).sum(axis=-1).min() < 12


def test_applies_camera_orientation(writer, tmp_path):
    picture = Image.new("RGB", (80, 40), "black")
    picture.paste("white", (0, 0, 80, 10))  # white at the top before the rotation
    exif = picture.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees: the top is shown on the right
    path = tmp_path / "photo.png"
    picture.save(path, exif=exif)
    row = write(writer, str(path), 0.5, np.zeros((8, 8), np.float32), 0.0)
    assert row["size"] == [40, 80]
    assert np.load(writer.folder / row["map"]).shape == (80, 40)
    figure = np.asarray(Image.open(writer.folder / row["figure"]).convert("L"))
    panel = figure[-270:-14, 14 : 14 + 128]
    assert panel[128, 120] > 240
    assert panel[128, 60] < 10


def test_map_has_its_own_scale_if_the_range_is_unknown(tmp_path):
    path = image_file(tmp_path / "a.png", (100, 100))
    thumbnails = []
    for name, factor in (("small", 0.01), ("large", 100)):
        writer = Writer(folder=tmp_path / name, scale=None, map_size=99)
        row = write(writer, path, 0.0, np.float32(factor) * spot(3, 4), 0.0)
        thumbnails.append(np.asarray(Image.open(writer.folder / row["thumbnail"])))
    assert thumbnails[0][:, 132:].max() > 150
    np.testing.assert_array_equal(*thumbnails)


def test_writes_decisions_masks_and_regions_on_request(tmp_path):
    path = image_file(tmp_path / "a.png", (32, 16))
    anomaly_map = np.zeros((8, 8), np.float32)
    anomaly_map[:, 4:] = 0.9
    options = {"folder": tmp_path / "out", "scale": (0.0, 1.0), "map_size": 1024}
    writer = Writer(threshold=0.4, pixel_threshold=0.5, **options)
    row = write(writer, path, 0.41, anomaly_map, 0.0)
    assert row["decision"] == "anomalous"
    mask = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
    assert mask.shape == (16, 32)
    [region] = row["regions"]
    left, top, width, height = region["box"]
    assert (top, height, left + width) == (0, 16, 32)
    assert 15 <= left <= 17
    assert region["area"] == mask.astype(bool).sum()
    assert region["peak"] == 0.9
    again = write(Writer(**options), path, 0.41, anomaly_map, 0.0)
    assert not {"decision", "mask", "regions"} & again.keys()
    remove_unused(tmp_path / "out", [again])
    assert not (tmp_path / "out" / row["mask"]).exists()  # would contradict the row
    assert (tmp_path / "out" / row["figure"]).exists()


def test_masks_and_regions_use_pixels_of_large_images(tmp_path):
    path = image_file(tmp_path / "a.png", (200, 100))
    writer = Writer(folder=tmp_path, scale=(0.0, 1.0), map_size=50, pixel_threshold=0.5)
    row = write(writer, path, 0.0, np.ones((8, 8), np.float32), 0.0)
    assert np.load(tmp_path / row["map"]).shape == (25, 50)
    assert Image.open(tmp_path / row["mask"]).size == (200, 100)
    assert row["regions"] == [{"box": [0, 0, 200, 100], "area": 20000, "peak": 1.0}]


def test_warning_is_in_every_output(tmp_path):
    path = image_file(tmp_path / "a.png")
    options = {"scale": (0.0, 1.0), "map_size": 99, "pixel_threshold": 0.5}
    plain, warned = (
        Writer(folder=tmp_path / name, warning=name, **options)
        for name in ("", "not for decisions")
    )
    row = write(warned, path, 0.0, spot(1, 1), 0.0)
    assert row["warning"] == "not for decisions"
    assert Image.open(warned.folder / row["mask"]).text["Comment"] == "not for decisions"
    for kind in ("figure", "thumbnail"):
        comment = Image.open(warned.folder / row[kind]).info["comment"]
        assert comment.endswith(b"not for decisions")
    other = write(plain, path, 0.0, spot(1, 1), 0.0)
    assert "warning" not in other
    tall, short = (Image.open(one.folder / row["figure"]).height for one in (warned, plain))
    assert tall > short  # one more line


def row_of(path, **more):
    import hashlib

    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return {"path": path, "score": 0.5, "sha256": digest, "key": "key", **more}


def key_of(image):
    return "key"


def test_journal_resumes_after_truncated_line(tmp_path):
    images = [image_file(tmp_path / f"{i}.png", (3 + i, 3)) for i in range(4)]
    first = Journal(tmp_path / "rows.jsonl")
    assert first.reuse(images, key_of) == 0
    first.add(row_of(images[2], score=2))
    first.add(row_of(images[0], score=0))
    with open(first.path, "a") as file:
        file.write('{"path": "cut')
    second = Journal(tmp_path / "rows.jsonl")
    assert second.reuse(images, key_of) == 2
    second.add(row_of(images[3], score=3))
    assert [json.loads(line)["score"] for line in second.path.read_text().splitlines()] == [0, 2, 3]
    rows = second.finish(images)
    assert [row["score"] for row in rows] == [0, 2, 3]
    stored = [json.loads(line) for line in second.path.read_text().splitlines()]
    assert [row["path"] for row in stored] == [images[0], images[2], images[3]]


def test_journal_reuses_only_unchanged_rows(tmp_path):
    images = [image_file(tmp_path / f"{i}.png") for i in range(4)]
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    (tmp_path / "raw_maps").mkdir()
    maps = [tmp_path / f"raw_maps/{output_name(image)}.npy" for image in images]
    for image, raw_map in zip(images, maps, strict=True):
        np.save(raw_map, spot(3, 4))
        journal.add(row_of(image, raw_map=f"raw_maps/{raw_map.name}"))
    journal.finish(images)
    assert Journal(path).reuse(images, key_of) == 4
    assert Journal(path).reuse(images, lambda image: "other") == 0
    image_file(tmp_path / "0.png", color=(1, 2, 3))  # changed
    maps[1].write_bytes(maps[1].read_bytes()[:-9])  # map cut short
    os.unlink(images[2])  # image missing
    again = Journal(path)
    assert again.reuse(images, key_of) == 1
    assert list(again.records) == [images[3]]


def test_journal_keeps_names_that_are_not_valid_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        path = image_file(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes valid UTF-8 only")
    journal = Journal(tmp_path / "rows.jsonl")
    journal.add(row_of(path))
    journal.finish([path])
    assert Journal(tmp_path / "rows.jsonl").reuse([path], key_of) == 1
