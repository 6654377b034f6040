import collections
import csv
import re

import numpy as np
import pytest
from PIL import Image

from zsad_jax.predict import thresholds


@pytest.fixture
def shown(experiment, pictures, job):
    """Returns the page and the rows of the table of a run over images with difficult names."""
    names = ("=1+1.png", "a\nb.png", "<b>.png", "正常.png")
    for name in names:
        Image.new("RGB", (30, 20), "gray").save(pictures / "a" / name)
    job.predict(experiment, [pictures], threshold=thresholds.Threshold(value=1.1))
    with open(job.out / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        return (job.out / "index.html").read_text(encoding="utf-8"), list(csv.DictReader(file))


def test_table_holds_a_line_for_each_image(shown, job):
    _, table = shown
    assert len(table) == 10
    scored = [row for row in table if row["score"]]
    scores = [float(row["score"]) for row in scored]
    assert scores == sorted(scores, reverse=True)
    by_path = {row["path"]: row for row in job.rows()}
    for row in scored:
        stored = by_path[row["path"].replace(r"\n", "\n")]
        assert float(row["score"]) == stored["score"]
        assert row["decision"] == stored["decision"]
        assert [int(row["width"]), int(row["height"])] == stored["size"]
    assert "cannot be read" in table[-1]["error"]
    assert len((job.out / "predictions.csv").read_text().splitlines()) == 11


def test_table_holds_no_formulas(experiment, pictures, job, monkeypatch):
    monkeypatch.chdir(pictures / "a")
    (pictures / "a/0.png").rename(pictures / "a/=1+1.png")
    job.predict(experiment, ["=1+1.png"])
    assert "\n'=1+1.png," in (job.out / "predictions.csv").read_text()


def test_page_shows_all_images_by_score(shown, job):
    page, table = shown
    scored = [row for row in table if row["score"]]
    assert page.count("<figure") == page.count('src="data:image/jpeg;base64,') == len(scored)
    links = re.findall(r'<a href="([^"]+)"', page)
    assert links == [row["figure"] for row in scored]
    assert all((job.out / link).exists() for link in links)
    assert re.findall(r'data-decision="(\w+)"', page) == [row["decision"] for row in scored]
    assert {*re.findall(r'data-folder="(\w+)"', page)} == {"a", "b"}
    assert "broken.png</dt>" in page
    options = re.findall(r'<option value="\w+">(.*)</option>', page)
    counts = collections.Counter(row["decision"] for row in scored)
    assert options == [*(f"{one} ({counts[one]})" for one in sorted(counts)), "a (6)", "b (3)"]


def test_page_is_self_contained_and_escapes_names(shown):
    page, _ = shown
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    assert r"a\nb.png" in page
    assert not re.search(r'(src|href)="(https?:|//)|@import|url\(', page)


def test_page_shows_basis_of_decisions(experiment, pictures, job, caplog):
    """Covers the page and the log; a run that reuses all repeats both."""
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(pictures / "a/dark.png")
    (pictures / "a/photo.heic").touch()
    (pictures / "a/dead.png").symlink_to("/nowhere/x.png")
    good = thresholds.Threshold(good=str(pictures / "b"), quantile=0.9)
    for _ in range(2):
        caplog.clear()
        job.predict(experiment, [pictures / "a"], threshold=good)
        assert "images: " in caplog.text
        assert "the image is dark" in caplog.text
    page = (job.out / "index.html").read_text(encoding="utf-8")
    value = f"{job.rows()[0]['threshold']:.9g}"
    assert f"in {pictures / 'a'}, 2 images without a score, 1 file ignored" in page
    assert (
        f"Threshold {value}, from the quantile 0.9 of the scores of\n 3 known-good images in"
        in page
    )
    assert "needs at least 10 known-good images" in page
    assert page.count(f"(threshold {value})") == 3
    assert "; the 16-bit values use 14 bits or fewer" in page
    assert "convert it to PNG or JPEG" in page
    assert "<dt>dead.png</dt>" in page


def test_thumbnails_show_image_and_overlay(experiment, pictures, job):
    job.predict(experiment, [pictures / "b/0.png"])
    thumbnail = np.asarray(Image.open(job.out / job.rows()[0]["thumbnail"]))
    assert thumbnail.shape == (128, 260, 3)
    left, right = thumbnail[:, :128].astype(int), thumbnail[:, 132:].astype(int)
    assert np.ptp(left, axis=-1).mean() > np.ptp(right, axis=-1).mean()  # the image has colors
