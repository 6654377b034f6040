import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from zsad_jax.experiment.config import Experiment, from_config
from zsad_jax.predict import outputs, score, thresholds
from zsad_jax.predict.folders import Folder, Folders
from zsad_jax.utils.errors import UserError


@pytest.fixture
def finished(experiment, pictures, job):
    """Returns a finished run and its rows."""
    job.predict(experiment, [pictures])
    return (job.out / "predictions.jsonl").read_bytes()


def raise_error(self):
    raise AssertionError("weights were read")


def test_second_run_scores_nothing(experiment, pictures, job, finished, forbid_scoring):
    monkeypatch = forbid_scoring
    monkeypatch.setattr(Experiment, "load_backbone", raise_error)
    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.is_file()}
    job.predict(experiment, [pictures])
    assert (job.out / "predictions.jsonl").read_bytes() == finished
    after = {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} == {"run.json"}
    assert job.run_info()["num_scored"] == 0
    assert job.run_info()["num_reused"] == 5


@pytest.fixture
def own_weights(config, tmp_path):
    """Returns an experiment with its own weight files, and one of these files."""
    backbone = dict(config["backbone"])
    for side in ("vision", "text"):
        with np.load(backbone[side]) as arrays:
            backbone[side] = str(tmp_path / f"{side}.npz")
            np.savez(backbone[side], **arrays)
    return from_config(config | {"backbone": backbone}), backbone["vision"]


def test_rereads_weights_with_changed_date(own_weights, pictures, job, request):
    experiment, path = own_weights
    job.predict(experiment, [pictures])
    os.utime(path, ns=(0, 0))
    forbid_scoring = request.getfixturevalue("forbid_scoring")
    with forbid_scoring.context() as patch:
        patch.setattr(Experiment, "load_backbone", raise_error)
        with pytest.raises(AssertionError, match="weights were read"):
            job.predict(experiment, [pictures])
    job.predict(experiment, [pictures])  # the weights are the same, so nothing is scored
    assert job.run_info()["num_reused"] == 5


def test_rejects_weights_that_changed_with_unchanged_date(own_weights, pictures, job):
    experiment, path = own_weights
    job.predict(experiment, [pictures / "a"])
    found = os.stat(path)
    with np.load(path) as arrays:
        changed = {name: array[..., ::-1] for name, array in arrays.items()}
    np.savez(path, **changed)
    assert os.path.getsize(path) == found.st_size
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(UserError, match=r"differ from those in run\.json.*Delete .*run\.json"):
        job.predict(experiment, [pictures])


def count_scored(monkeypatch):
    """Returns a list of the images that are scored from here on."""
    scored = []
    original = score.score_images

    def listed(model, images, *args, **kwargs):
        scored.extend(os.path.basename(image) for image in images)
        return original(model, images, *args, **kwargs)

    monkeypatch.setattr(score, "score_images", listed)
    return scored


def test_rescores_only_changed_images(experiment, pictures, job, finished, monkeypatch):
    scored = count_scored(monkeypatch)
    Image.new("RGB", (40, 20), "red").save(pictures / "a/1.png")  # another file with the same name
    Image.new("RGB", (10, 10), "blue").save(pictures / "b/1.png")  # a new file
    os.unlink(job.out / job.rows()[3]["figure"])  # the figure of b/2.jpg is missing: drawn anew
    os.unlink(job.out / job.rows()[0]["raw_map"])  # the stored map of a/0.png is missing
    job.predict(experiment, [pictures])
    assert sorted(scored) == ["0.png", "1.png", "1.png", "broken.png"]
    rows = job.rows()
    assert [os.path.relpath(row["path"], pictures) for row in rows] == [
        "a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.jpg", "b/3.tif"
    ]  # fmt: skip
    assert rows[1]["size"] == [40, 20]
    assert all((job.out / row[kind]).exists() for row in rows for kind in ("figure", "raw_map"))
    assert job.run_info()["num_reused"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"folders": Folders(Folder("wood"))},
        {"prompt_family": "medical"},
        {"config": {"method": {"name": "tipsomaly", "sigma": 2.0}}},
        {"config": {"image_score": "another"}},
    ],
    ids=str,
)
def test_rescores_everything_with_another_model(
    config, experiment, pictures, job, finished, monkeypatch, change
):
    class StoppedError(Exception):
        pass

    def stop(model, images, *args, **kwargs):
        raise StoppedError(len(images))

    monkeypatch.setattr(score, "score_images", stop)
    change = dict(change)
    changes = change.pop("config", {})
    if "image_score" in changes:
        method = experiment.main_method(experiment.load_backbone())
        changes = {"image_score": method.image_scores[-1]}
    changed = from_config(config | changes)
    with pytest.raises(StoppedError, match="6"):
        job.predict(changed, [pictures], **change)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.0, 0.5)},
        {"map_size": 20},
        {"pixel_threshold": 0.5},
        {"threshold": thresholds.Threshold(value=1.0)},
        {"threshold": thresholds.Threshold(value=1.9)},
    ],
    ids=str,
)
def test_other_options_need_no_inference(
    experiment, pictures, job, job_in, tmp_path, request, change
):
    """Makes sure that the results are those of a run that computes everything."""
    fresh = job_in(tmp_path / "fresh")
    fresh.predict(experiment, [pictures], **change)
    job.predict(experiment, [pictures], threshold=thresholds.Threshold(value=1.5))
    forbid_scoring = request.getfixturevalue("forbid_scoring")
    forbid_scoring.setattr(Experiment, "load_backbone", raise_error)
    job.predict(experiment, [pictures], **change)
    assert job.run_info()["num_reused"] == 5
    found, expected = job.all_rows(), fresh.all_rows()
    for row in found + expected:
        del row["check"]
        row.pop("time", None)
    assert found == expected
    written, wanted = job.contents(), fresh.contents()
    assert written.keys() == wanted.keys()
    for name in written:
        if name.suffix == ".jpg":
            one, other = (np.asarray(Image.open(each.out / name), int) for each in (job, fresh))
            assert np.abs(one - other).mean() < 1
        elif name.name not in ("run.json", "predictions.jsonl"):
            assert written[name] == wanted[name]


@pytest.mark.parametrize("value", [None, 1.5, 10**400, "", [], {"a": 1}], ids=str)
@pytest.mark.parametrize("name", ["predictions.jsonl", "run.json"])
def test_changed_values_are_computed_again(experiment, pictures, job, name, value):
    options = {"threshold": thresholds.Threshold(value=1.0), "pixel_threshold": 0.5}
    job.predict(experiment, [pictures / "b"], **options)
    path, before = job.out / name, job.rows()
    if name == "run.json":
        run = job.run_info()
        path.write_text(json.dumps(run | {"model": run["model"] | {"map_range": value}}))
    else:
        changes = ({one: value} for one in ("score", "size", "regions"))
        changed = [row | change for row, change in zip(before, changes, strict=True)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in changed))
    job.predict(experiment, [pictures / "b"], **options)
    shown = ("path", "score", "decision", "size", "regions")
    assert [[row[one] for one in shown] for row in job.rows()] == [
        [row[one] for one in shown] for row in before
    ]


def test_figure_that_cannot_be_read_is_drawn_anew(experiment, pictures, job, finished):
    figure = job.out / job.rows()[0]["figure"]
    figure.write_bytes(b"no picture")
    job.predict(experiment, [pictures], threshold=thresholds.Threshold(value=1.0))
    assert Image.open(figure).width > 300
    assert job.run_info()["num_failed"] == 0


def test_kill_between_figure_and_record_leaves_no_wrong_decision(
    experiment, pictures, job, monkeypatch
):
    """Stops a run that replaces decisions; the run before it, repeated, restores all figures."""
    low, high = (thresholds.Threshold(value=value) for value in (0.5, 1.9))
    job.predict(experiment, [pictures], threshold=low)
    before = {row["figure"]: Image.open(job.out / row["figure"]) for row in job.rows()}
    before = {name: np.asarray(figure, int) for name, figure in before.items()}

    class KilledError(BaseException):
        pass

    def kill(self, record):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Journal, "add", kill)
        with pytest.raises(KilledError):
            job.predict(experiment, [pictures], threshold=high)
    job.predict(experiment, [pictures], threshold=low)
    assert job.run_info()["num_reused"] == 5
    assert {row["decision"] for row in job.rows()} == {"anomalous"}
    for name, figure in before.items():
        assert np.abs(np.asarray(Image.open(job.out / name), int) - figure).mean() < 0.5


def test_removes_files_of_images_that_are_no_longer_given(experiment, pictures, job, finished):
    own = job.out / "figures" / "own.jpg"
    Image.new("RGB", (9, 9)).save(own)
    job.predict(experiment, [pictures / "b"])
    written = {path.name for path in (job.out / "figures").iterdir()}
    assert written == {own.name, *(os.path.basename(row["figure"]) for row in job.rows())}
    assert len(list((job.out / "raw_maps").iterdir())) == 3


def test_resumes_after_kill(run_command, pictures, job, monkeypatch):
    """Kills the run while it writes the fourth image; the same command then scores the rest."""
    script = textwrap.dedent(f"""
        import os, signal, sys, threading
        from zsad_jax.experiment import config_flag
        from zsad_jax.predict import __main__ as predict
        from zsad_jax.predict import outputs, run
        original, count, lock = outputs.Writer.write, 0, threading.Lock()

        def write(self, *arguments):
            global count
            with lock:
                count += 1
                if count == 4:
                    with open({str(job.out / "predictions.jsonl")!r}, "a") as file:
                        file.write('{{"path": "half a li')
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, *arguments)

        outputs.Writer.write = write
        run.MAX_WRITERS = 1
        config_flag.run(predict.main, "zsad_jax.predict")
    """)
    config = pictures.parent / "config.py"
    command_line = [
        sys.executable,
        "-c",
        script,
        str(pictures),
        f"--out={job.out}",
        f"--config={config}",
    ]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    died = subprocess.run(command_line, env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (job.out / "run.json").exists()
    kept = rows_of_cut(job.out)
    assert len(kept) == 3

    scored = count_scored(monkeypatch)
    code, said, _ = run_command(pictures, "--out", job.out)
    assert code == 0
    assert "Scored 2 images (3 reused" in said
    assert sorted(scored) == ["2.jpg", "3.tif", "broken.png"]
    rows = job.rows()
    assert rows[:3] == kept
    assert len({row["path"] for row in rows}) == len(rows) == 5
    assert not list(job.out.rglob(".*part*"))


def rows_of_cut(out):
    *lines, cut = (out / "predictions.jsonl").read_text().splitlines()
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(cut)
    return [json.loads(line) for line in lines]


def test_ignores_results_of_an_earlier_run(experiment, pictures, job_in):
    """Ignores only files written by the run, not other images in folders of the same names."""
    job = job_in(pictures)
    (pictures / "b").rename(pictures / "figures")
    for expected in (5, 0):
        job.predict(experiment, [pictures], pixel_threshold=0.5)
        assert job.run_info()["num_scored"] == expected
        assert job.run_info()["num_images"] == 6
    other = job_in(pictures.parent / "other")  # the results inside of the images are of another run
    other.predict(experiment, [pictures])
    assert other.run_info()["num_images"] == 6
    assert other.run_info()["ignored_by_kind"] == {"output": 30}
    os.unlink(pictures / "a/0.png")
    for _ in range(2):  # its figure is unchanged
        job.predict(experiment, [pictures], pixel_threshold=0.5)
        assert job.run_info()["num_images"] == 5


def test_removes_results_of_other_images_only_from_runs_that_share_an_image(
    experiment, pictures, job, caplog
):
    job.predict(experiment, [pictures / "a"])
    before = job.contents()
    with pytest.raises(UserError, match=r"has results of 2 other images.*Choose another --out"):
        job.predict(experiment, [pictures / "b"])
    assert before == job.contents()
    job.predict(experiment, [pictures / "a/0.png", pictures / "b"])
    assert f"Results of 1 image in {job.out} will be removed" in caplog.text
    names = ("a/0.png", "b/0.png", "b/2.jpg", "b/3.tif")
    assert [row["path"] for row in job.rows()] == [str(pictures / name) for name in names]


def test_second_run_reuses_scores_of_known_good_images(
    experiment, pictures, job, capsys, caplog, monkeypatch
):
    asked = thresholds.Threshold(good=str(pictures / "b"), quantile=0.99)
    job.predict(experiment, [pictures / "a"], threshold=asked)
    assert "needs at least 100 known-good images, but only 3" in caplog.text
    assert "100" in job.run_info()["threshold"]["warning"]
    first = capsys.readouterr().out
    scored = count_scored(monkeypatch)
    job.predict(experiment, [pictures / "a"], threshold=asked)
    assert scored == ["broken.png"]
    assert (job.out / "known_good.jsonl").exists()
    job.predict(experiment, [pictures / "a"])
    assert not (job.out / "known_good.jsonl").exists()
    decided = re.compile(r".* anomalous, .*")
    assert decided.search(capsys.readouterr().out)[0] == decided.search(first)[0]


def test_full_disk_is_reported_and_finished_images_are_kept(experiment, pictures, job, monkeypatch):
    original = outputs.Writer.write

    def write(self, scored):
        if scored.file.path.endswith("2.jpg"):
            raise OSError(28, "No space left on device")
        return original(self, scored)

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Writer, "write", write)
        with pytest.raises(UserError, match=r"No space left on device.*Finished images are kept"):
            job.predict(experiment, [pictures])
    job.predict(experiment, [pictures])
    assert job.run_info()["num_reused"] >= 3
    assert len(job.rows()) == 5
