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
    with open(job.out / "predictions.csv", encoding="utf-8", newline="") as file:
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


def test_thumbnails_show_image_and_overlay(experiment, pictures, job):
    job.predict(experiment, [pictures / "b/0.png"])
    thumbnail = np.asarray(Image.open(job.out / job.rows()[0]["thumbnail"]))
    assert thumbnail.shape == (128, 260, 3)
    left, right = thumbnail[:, :128].astype(int), thumbnail[:, 132:].astype(int)
    assert np.ptp(left, axis=-1).mean() > np.ptp(right, axis=-1).mean()  # the image has colors
