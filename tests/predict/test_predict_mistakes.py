import dataclasses
import re

import pytest

from zsad_jax.experiment.config import Experiment
from zsad_jax.predict import score
from zsad_jax.predict.folders import Folder, Folders
from zsad_jax.predict.thresholds import Threshold
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError


@pytest.fixture
def forbid_loading(monkeypatch):
    """Makes sure that mistakes are reported before weights are read."""

    def fail(self):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Experiment, "load_backbone", fail)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{images}"], "--out is missing"),
        (["--out={out}"], "No images are given"),
        (["{images}/none", "--out={out}"], "none does not exist"),
        (["{empty}", "--out={out}"], "No images found in"),
        (["{images}", "--out={out}", "--threshold=high"], "Expected a number, or FOLDER:QUANTILE"),
        (["{images}", "--out={out}", "--threshold={images}/none:0.9"], "--threshold: .* not exist"),
        (["-1;2,3.png", "--out={out}"], r"'-1;2,3.png' is read as an option. .* \./-1;2,3\.png"),
        (["{images}", "--out={out}", "--scale=1,0"], "Expected LOW,HIGH"),
        (["{images}", "--out={out}", "--prompts=poetic"], "poetic"),
        (["{images}", "--out={out}", "--map_size=0"], "map_size"),
        (["{images}", "--out={out}", "--batch_size=x"], "batch_size"),
        (["{images}", "--out={out}", "--nothing=1"], "nothing"),
        (["{images}", "--out={out}", "--checkpoint=none.npz"], "none.npz' is neither a file nor"),
        (["{images}", "--out={images}/a/0.png"], "cannot be written to"),
        (["{images}", "--out={out}", "--config.method.sigmar=1"], "sigmar"),
        (["{images}", "--out={out}", "--config.bach_size=1"], "config.batch_size"),
        (["{images}", "--out={out}", "--config.distributed"], "config.distributed has no effect"),
        (
            ["{images}", "--out={out}", "sigma=8"],
            r"'sigma=8'. Did you mean --config.method.sigma=8\?",
        ),
        (["{images}", "--out={out}", "category=nut"], r"Did you mean --category=nut\?"),
        (["{images}", "--out={out}", "--category="], "The category is empty"),
        (["{images}", "--out="], "--out is ''. Expected a file or a folder"),
        (["{images}/a=b", "--out={out}"], "a=b.* does not exist"),
        (["{images}", "--out={out}", "--config.distributed"], "has no effect on predict"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    run_command, pictures, job, tmp_path, monkeypatch, forbid_loading, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-1;2,3.png").touch()
    (tmp_path / "empty").mkdir()
    places = {"images": pictures, "out": job.out, "empty": tmp_path / "empty"}
    code, _, said = run_command(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert re.search(words, said), said
    [line] = said.strip().splitlines()
    assert line.startswith("error: ")


def test_scores_file_with_equals_sign_in_name(run_command, pictures, job, monkeypatch):
    (pictures / "sigma=8").mkdir()
    (pictures / "a/0.png").rename(pictures / "sigma=8/0.png")
    monkeypatch.chdir(pictures)
    code, _, said = run_command("sigma=8", "--out", job.out)
    assert code == 0, said
    assert [row["path"] for row in job.rows()] == ["sigma=8/0.png"]


def test_reports_missing_config(run_command, pictures, job):
    code, _, said = run_command(pictures, f"--out={job.out}", config=None)
    assert (code, said.startswith("error: --config is missing")) == (2, True)
    code, _, said = run_command(pictures, f"--out={job.out}", config="--config=none.py")
    assert code == 2
    assert "none.py" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixel_threshold": 0.0}, "--pixel_threshold=0 is .* above 0 and at most 1"),
        ({"threshold": Threshold(value=5.0)}, "--threshold=5 is .* above 0 and at most 2"),
        ({"threshold": Threshold(value=0.0)}, "--threshold=0 is .* above 0 and at most 2"),
        ({"folders": Folders(listed={"/x": Folder("nut", 5.0)})}, "threshold of /x=5 .* at most 2"),
    ],
    ids=str,
)
def test_rejects_threshold_outside_range(experiment, pictures, job, forbid_scoring, options, words):
    with pytest.raises(UserError, match=words):
        job.predict(experiment, [pictures], **options)


def test_threshold_is_not_limited_where_range_of_scores_is_unknown(
    experiment, pictures, job, monkeypatch
):
    original = score.describe_detector

    def describe(*arguments):
        return dataclasses.replace(original(*arguments), score_range=None)

    monkeypatch.setattr(score, "describe_detector", describe)
    job.predict(experiment, [pictures], threshold=Threshold(value=5.0))
    assert {row["decision"] for row in job.rows()} == {"normal"}


def test_rejects_input_without_readable_images(run_command, pictures, job, forbid_scoring):
    code, _, said = run_command(pictures / "a/broken.png", "--out", job.out)
    assert code == 2
    assert "Cannot score any of the images (1 failed" in said
    assert "broken.png" in said


def test_run_without_readable_images_keeps_earlier_results(experiment, pictures, job):
    job.predict(experiment, [pictures / "a"])
    before = job.contents()
    for image in (pictures / "a").iterdir():
        image.write_text("no picture")
    with pytest.raises(UserError, match=r"Cannot score any of the images \(3 failed"):
        job.predict(experiment, [pictures / "a"])
    assert before == job.contents()


def test_rejects_quantile_over_images_of_another_category(
    experiment, pictures, job, forbid_loading
):
    good = Threshold(good=str(pictures / "a"), quantile=0.5)
    listed = {str(pictures / "b"): Folder("nut")}
    with pytest.raises(UserError, match=r"--threshold: The known-good .* categories: nut, object"):
        job.predict(experiment, [pictures / "b"], threshold=good, folders=Folders(listed=listed))


@pytest.mark.parametrize("listed", [{"a": ("nut", None), "b": ("nut", None)}, {"b": ("nut", 0.5)}])
def test_quantile_decides_images_of_its_category(experiment, pictures, job, listed, capsys):
    good = Threshold(good=str(pictures / "a"), quantile=0.5)
    listed = {str(pictures / name): Folder(*entry) for name, entry in listed.items()}
    job.predict(experiment, [pictures / "b"], threshold=good, folders=Folders(listed=listed))
    assert {row["category"] for row in job.rows()} == {"nut"}
    assert 'category  "nut"; image' in capsys.readouterr().out


def test_rejects_second_process_on_same_folder(run_command, pictures, job, forbid_loading):
    with files.alone(job.out):
        code, _, said = run_command(pictures, "--out", job.out)
    assert code == 2
    [line] = said.strip().splitlines()
    assert f"{job.out} is in use by another process" in line
