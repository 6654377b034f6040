import dataclasses
import json
import os
import re
import shutil

import pytest

from zsad_jax.predict.folders import Folder, Folders, read_folders
from zsad_jax.predict.thresholds import parse_threshold
from zsad_jax.utils.errors import UserError


@pytest.fixture
def write_table(pictures):
    """Returns a function that writes the file of `--folders` beside the images."""

    def write(content):
        path = pictures / "folders.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="latin-1")
        return str(path)

    return write


def test_innermost_folder_decides(pictures, write_table):
    (pictures / "a/deep").mkdir()
    table = {"a": {"category": "nut", "threshold": 0.5}, "a/deep": {"category": "bolt"}}
    folders = read_folders(write_table(table), Folder())
    assert folders.categories == ("object", "nut", "bolt")
    found = [folders.of(str(pictures / name)) for name in ("a/0.png", "a/deep/x/1.png", "b/0.png")]
    assert found == [Folder("nut", 0.5), Folder("bolt"), Folder("object")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"none": {"category": "nut"}}, "images/none. Expected"),
        ({"a": {"category": "nut"}, "./a": {}}, "'./a' is listed twice"),
        ({"a\\deep": {}, "none": {}}, "images/a\\deep. Did you mean a/deep? There is no"),
        ({"none": {"threshold": "1"}}, 'images/none. none: "threshold" is "1"'),
        ({"a": {"categori": "nut"}}, "Did you mean category"),
        ({"a": {"threshold": "0.5"}}, 'a: "threshold" is "0.5". Expected a number'),
        ({"a": "nut"}, 'a: "nut" is not a mapping'),
        ('{"m\xfcller": {}}', "is not UTF-8. Save it as UTF-8"),
        ({"a\0": {}}, "embedded null"),
        (["a"], "Cannot read the folders"),
        ("folder,category\na,nut", "Cannot read the folders"),
        ('{"a": {}, "a": {"category": "nut"}}', "the key 'a' is repeated"),
        ('{"a": ' * 9999, "nested too deeply"),
    ],
)
def test_rejects_invalid_table(pictures, write_table, content, words):
    (pictures / "a/deep").mkdir()
    with pytest.raises(UserError) as caught:
        read_folders(write_table(content), Folder())
    assert words in str(caught.value)
    assert 'Expected JSON such as {"nuts"' in str(caught.value)


def test_folders_have_their_own_category_and_threshold(experiment, pictures, tmp_path, job_in):
    """Makes sure that scores are those of runs with one category."""
    names = [(str(pictures / "a"), "nut", 0.1), (str(pictures / "b"), "wood", None)]
    listed = {place: Folder(category, threshold) for place, category, threshold in names}
    job = job_in(tmp_path / "both")
    job.predict(experiment, [pictures], folders=Folders(Folder("object"), listed))
    rows = job.rows()
    assert [row["category"] for row in rows] == ["nut"] * 2 + ["wood"] * 3
    assert [row.get("decision") for row in rows] == ["anomalous"] * 2 + [None] * 3
    scores = []
    for place, category, _ in names:
        one = job_in(tmp_path / category)
        one.predict(experiment, [place], folders=Folders(Folder(category)))
        scores += [row["score"] for row in one.rows()]
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=2e-6)
    assert len({round(score, 4) for score in scores}) > 1


def test_changed_category_of_a_folder_rescores_that_folder_only(experiment, pictures, job):
    for category, reused in (("nut", 0), ("bolt", 3)):
        folders = Folders(listed={str(pictures / "a"): Folder(category)})
        job.predict(experiment, [pictures], folders=folders)
        assert job.run_info()["num_reused"] == reused


def test_warns_of_folder_without_images(experiment, pictures, job, caplog):
    folders = Folders(listed={str(pictures / "a"): Folder("nut")})
    job.predict(experiment, [pictures / "b"], folders=folders)
    assert f"There are no images in {pictures / 'a'}, which --folders lists." in caplog.text


@pytest.fixture
def few_shot(experiment):
    method = {"name": "knn", "num_views": 1}
    return dataclasses.replace(experiment, method=method, auxiliary=None)


@pytest.fixture
def references(pictures, tmp_path):
    """Returns a function that writes a folder of references, copies of some of the images."""

    def write(name, *copied):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        for number, one in enumerate(copied):
            shutil.copy(pictures / one, place / f"{number}.png")
        return str(place)

    return write


def test_other_references_rescore_the_images(few_shot, pictures, job, references, capsys):
    for copied, reused in ((["a/0.png"], 0), (["a/0.png"], 5), (["a/1.png"], 0)):
        place = references("good", *copied)
        job.predict(few_shot, [pictures], references=place)
        assert job.run_info()["num_reused"] == reused
        assert [*job.run_info()["references"]] == [f"{place}/0.png"]
        assert f"compared  with 1 image of {place}" in capsys.readouterr().out
        scores = {row["path"][-len("a/0.png") :]: row["score"] for row in job.rows()}
        assert scores[copied[0]] == pytest.approx(0, abs=1e-5)
        assert max(scores.values()) > 1e-3


def test_reports_ignored_files_among_references(few_shot, pictures, job, references, caplog):
    place = references("good", "a/0.png", "a/1.png")
    os.rename(f"{place}/1.png", f"{place}/0_mask.png")
    job.predict(few_shot, [pictures / "a"], references=place)
    assert [*job.run_info()["references"]] == [f"{place}/0.png"]
    assert re.search("Ignoring .*0_mask.png", caplog.text)


def test_rejects_references_that_do_not_fit(few_shot, experiment, pictures, job, references):
    good = references("good", "a/0.png")
    several = Folders(listed={str(pictures / "a"): Folder("nut")})

    def check(words, model, **options):
        with pytest.raises(UserError, match=words):
            job.predict(model, [pictures], **options)

    check("knn requires normal reference images .*--references FOLDER", few_shot)
    check("tipsomaly takes no reference images", experiment, references=good)
    large = {"name": "tips-l14-hr"}  # which is not downloaded first
    alone = dataclasses.replace(few_shot, method={"name": "musc"}, backbone=large)
    check("Without references, musc scores the images of a category together", alone)
    check("name several: object, nut. Name one", few_shot, references=good, folders=several)
    threshold = parse_threshold(f"{good}:0.9")
    words = "both a known-good image and a reference"
    check(words, few_shot, references=good, threshold=threshold)
