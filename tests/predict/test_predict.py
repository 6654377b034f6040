import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from zsad_jax import detector as detectors
from zsad_jax import metrics
from zsad_jax.experiment.config import Experiment, from_config
from zsad_jax.methods.shared import prompt_files
from zsad_jax.predict import outputs, score, thresholds
from zsad_jax.report import DEMONSTRATION


def test_writes_results_of_images(run_command, pictures, job, experiment):
    code, said, _ = run_command(
        pictures,
        "--out",
        job.out,
        "--threshold=1.0",
        "--pixel_threshold=0.5",
        "--category=metal nut",
    )
    assert code == 0
    assert "tipsomaly on tips, 42 px" in said
    assert "fixed prompts; prompt family: industrial" in said
    method = experiment.main_method(experiment.load_backbone())
    assert f'category  "metal nut"; image score: {method.image_scores[0]}' in said
    assert "Scored 5 images (0 reused from an earlier run, 1 unreadable, 0 files ignored)." in said

    rows = job.rows()
    names = [os.path.relpath(row["path"], pictures) for row in rows]
    assert names == ["a/0.png", "a/1.png", "b/0.png", "b/2.jpg", "b/3.tif"]
    for row in rows:
        size = Image.open(row["path"]).size
        assert row["size"] == list(size)
        assert np.load(job.out / row["map"]).shape == size[::-1]
        assert Image.open(job.out / row["mask"]).size == size
        assert row["decision"] == ("anomalous" if row["score"] >= 1 else "normal")
        assert row["time"] > 0
        assert (job.out / row["figure"]).exists()
        assert "warning" not in row
        assert ("note" in row) == row["path"].endswith(".tif")
    assert rows[4]["note"] == "the pixel values were scaled to 8 bits (16-bit values 0 to 65535)"
    assert len({row["map"] for row in rows}) == 5

    run = job.run_info()
    assert (run["num_images"], run["num_scored"], run["num_reused"]) == (6, 5, 0)
    [unreadable] = run["issues"]
    assert unreadable["kind"] == "image_unreadable"
    assert unreadable["file"].endswith("a/broken.png")
    assert "not an image" in unreadable["detail"]
    assert run["settings"]["scale"] == [0, 1]
    assert run["model"]["prompts"] == "fixed prompts"
    assert not run["demonstration"]

    found = detectors.load_detector(
        "tipsomaly", experiment.load_backbone(), category="metal nut", sigma=1.0
    ).predict([row["path"] for row in rows])
    np.testing.assert_allclose([row["score"] for row in rows], found.score, atol=2e-6)
    square = np.load(job.out / rows[2]["map"])
    np.testing.assert_allclose(square, found.anomaly_map[2], atol=1e-5)


def test_threshold_from_known_good_images(experiment, pictures, job, caplog):
    asked = thresholds.Threshold(good=str(pictures / "b"), quantile=0.5)
    job.predict(experiment, [pictures], threshold=asked)
    good = job.rows("known_good.jsonl")
    rows = job.rows()
    by_path = {row["path"]: row["score"] for row in rows}
    assert [row["score"] for row in good] == pytest.approx(
        [by_path[row["path"]] for row in good], abs=2e-6
    )
    median = sorted(row["score"] for row in good)[1]
    threshold = thresholds.shortest(np.nextafter(np.float32(median), np.float32(9)))
    assert job.run_info()["threshold"] | {"from": ""} == {
        "value": threshold, "from": "", "quantile": 0.5, "num_images": 3, "issues": [], "ignored": [],
        "warning": None,
    }  # fmt: skip
    for row in rows:
        assert row["decision"] == ("anomalous" if row["score"] > median else "normal")
    assert "known-good" not in caplog.text


def test_best_threshold_of_metrics_gives_their_f1(experiment, pictures, tmp_path, job_in):
    images = [pictures / name for name in ("a/0.png", "a/1.png", "b/0.png", "b/2.jpg")]
    first = job_in(tmp_path / "scores")
    first.predict(experiment, images)
    scores = [row["score"] for row in first.rows()]
    labels = np.argsort(np.argsort(scores)) >= 2
    best = thresholds.parse_threshold(repr(metrics.f1max_threshold(scores, labels)))
    second = job_in(tmp_path / "decisions")
    second.predict(experiment, images, threshold=best)
    decided = [row["decision"] == "anomalous" for row in second.rows()]
    np.testing.assert_array_equal(decided, labels)


def test_counts_unreadable_known_good_images(experiment, pictures, job):
    asked = thresholds.Threshold(good=str(pictures / "a"), quantile=0.5)
    job.predict(experiment, [pictures / "b"], threshold=asked)
    words = job.run_info()["threshold"]
    assert words["num_images"] == 2
    [unreadable] = words["issues"]
    assert unreadable["file"].endswith("a/broken.png")


def test_makes_no_decision_without_threshold(experiment, pictures, job, capsys):
    job.predict(experiment, [pictures / "b"])
    assert all("decision" not in row and "regions" not in row for row in job.rows())
    assert "anomalous" not in capsys.readouterr().out
    assert job.run_info()["threshold"] is None


def test_all_outputs_state_that_model_is_a_demonstration(
    experiment, pictures, job, capsys, monkeypatch
):
    import dataclasses

    backbone = dataclasses.replace(experiment.load_backbone(), name="toy-nano", demonstration=True)
    monkeypatch.setattr(Experiment, "load_backbone", lambda self: backbone)
    job.predict(experiment, [pictures / "b"])
    for row in job.rows():
        assert row["warning"] == DEMONSTRATION
        assert DEMONSTRATION.encode() in Image.open(job.out / row["figure"]).info["comment"]
    assert job.run_info()["warning"] == DEMONSTRATION
    assert job.run_info()["demonstration"] is True
    assert (job.out / "WARNING.txt").read_text().strip() == DEMONSTRATION
    assert capsys.readouterr().out.count(DEMONSTRATION) == 2
    monkeypatch.undo()
    (job.out / "run.json").unlink()  # otherwise it still warns about these files
    job.predict(experiment, [pictures / "b"])
    assert not (job.out / "WARNING.txt").exists()
    assert not any("warning" in row for row in job.rows())


def load(experiment, num_images=9, out=pathlib.Path("none"), **changes):
    options = score.Options(paths=[], out=out, **changes)
    return score.prepare_model(experiment, options, [], num_images=num_images)


def test_prompts_come_from_flag_then_config_then_package(
    config, experiment, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(prompt_files, "ASSETS", tmp_path)
    plain = load(experiment)
    assert plain.description.prompts == "fixed prompts"
    assert "Using fixed prompts" in caplog.text

    names = ("given.npz", "config.npz", "tips/tipsomaly_prompts.npz")
    given, configured, included = paths = [str(tmp_path / name) for name in names]
    for seed, path in enumerate(paths):
        key = jax.random.key(seed)
        prompt_files.save(path, plain.detector.method.init(key, plain.detector.backbone.params))
    assert load(experiment).description.prompts == "prompts included with tips"
    with_config = from_config(config | {"checkpoints": {"synthetic_aux": configured}})
    assert load(with_config).description.prompts == configured
    assert load(with_config, checkpoint=given).description.prompts == given
    models = [load(experiment), load(with_config), load(with_config, checkpoint=given), plain]
    assert len({model.description.key for model in models}) == 4
    # Prompts are identified by their content, not by their name.
    assert load(experiment, checkpoint=included).description.key == models[0].description.key

    fixed = from_config(
        config
        | {"checkpoints": {"synthetic_aux": configured}}
        | {"method": {"name": "tipsomaly", "learning": "none"}}
    )
    assert load(fixed).description.prompts == "fixed prompts"


def test_batch_size_does_not_exceed_number_of_images(experiment):
    assert load(experiment, num_images=2).batch_size == 2
    assert load(experiment, num_images=100).batch_size == 4


def test_every_file_is_scored_or_reported(experiment, pictures, job, caplog, capsys):
    """Covers each kind of file: counts add up, and no file ends the run."""
    folder = pictures / "odd"
    folder.mkdir()
    good = Image.new("RGB", (30, 20), "gray")
    for name in (
        "a\nb.png",
        "a $1 $2.png",
        "can.png",
        "can_label.png",
        os.fsdecode(b"caf\xe9.png"),
    ):
        good.save(os.path.join(folder, name), "PNG")
    good.save(folder / "scan.jfif", "JPEG")
    (folder / "em\npty.png").touch()
    for name in ("photo.HEIC", "notes.txt", ".hidden.png"):
        (folder / name).touch()
    job.predict(experiment, [folder])
    run = job.run_info()
    counts = [run[f"num_{name}"] for name in ("files", "images", "scored", "unreadable", "ignored")]
    assert counts == [10, 6, 5, 1, 4]
    ignored = {os.path.basename(one["file"]): one["kind"] for one in run["ignored"]}
    assert ignored == {
        "can_label.png": "mask_ignored",
        "photo.HEIC": "format_unsupported",
        "notes.txt": "document",
        ".hidden.png": "hidden",
    }
    assert "Skipping " in caplog.text
    assert r"em\npty.png: the image cannot be read (the file is empty)" in caplog.text
    assert "can_label.png: the file looks like a ground-truth mask; to score it" in caplog.text
    assert ".hidden.png: the file is hidden" in caplog.text
    said = capsys.readouterr().out
    assert "Scored 5 images (0 reused from an earlier run, 1 unreadable, 4 files ignored)." in said
    low, *_, high = sorted(row["score"] for row in job.rows())
    assert f"Scores range from {low:.3g} to {high:.3g}. The highest:" in said
    assert r"a\nb.png" in said
    for options, masks in ({}, 0), ({"include_masks": True}, 1):
        job.predict(experiment, [folder], **options)
        run = job.run_info()
        kinds = ("scored", "reused", "unreadable", "failed", "ignored")
        assert [run[f"num_{kind}"] for kind in kinds] == [masks, 5, 1, 0, 4 - masks]
        assert sum(run["ignored_by_kind"].values()) == run["num_ignored"]
        rows = {os.path.basename(row["path"]): row for row in job.all_rows()}
        assert "the file is empty" in rows["em\npty.png"]["error"]
        assert len(rows) == run["num_images"]


def test_scores_named_files_regardless_of_their_name(experiment, pictures, job):
    for name in ("a", "a_mask"):
        Image.new("RGB", (30, 20), "gray").save(pictures / f"{name}.png")
    job.predict(experiment, [pictures / "a_mask.png"])
    assert job.run_info()["num_scored"] == 1


def test_warns_of_figure_that_cannot_be_drawn(experiment, pictures, job, monkeypatch, caplog):
    monkeypatch.setattr(outputs, "draw_figure", lambda *args, **options: 1 / 0)
    job.predict(experiment, [pictures / "b"])
    assert [set(row) & {"map", "figure"} for row in job.rows()] == [{"map"}] * 3
    assert "Cannot draw the picture of" in caplog.text


def test_depth_scales_all_images_equally(run_command, pictures, job):
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(pictures / "deep.png")
    code, _, said = run_command(pictures / "deep.png", "--out", job.out, "--depth", "12")
    assert code == 0
    assert job.rows()[0]["note"].endswith("(16-bit values 0 to 4095)")
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(pictures / "deep.png")
    code, _, said = run_command(pictures / "deep.png", "--out", job.out, "--depth", "12")
    assert code == 2
    assert "more than 12 bits hold (4095)" in said


def test_excludes_results_of_earlier_run_from_known_good_images(
    experiment, pictures, job_in, caplog
):
    """Makes sure that results of earlier runs do not change the threshold."""
    job = job_in(pictures / "a" / "results")
    Image.new("L", (9, 9)).save(pictures / "a/0_mask.png")
    asked = thresholds.Threshold(good=str(pictures / "a"), quantile=0.5)
    for _ in range(2):
        job.predict(experiment, [pictures / "b"], threshold=asked, pixel_threshold=0.5)
        assert job.run_info()["threshold"]["num_images"] == 2
    assert "0_mask.png: the file looks like a ground-truth mask" in caplog.text
    assert "mask_ignored" in {one["kind"] for one in job.run_info()["threshold"]["ignored"]}


def test_any_exception_of_an_image_is_reported_as_its_issue(experiment, pictures, job, monkeypatch):
    original = outputs.resize_map

    def fail(anomaly_map, size, longest):
        if size == (31, 17):
            raise MemoryError
        return original(anomaly_map, size, longest)

    monkeypatch.setattr(outputs, "resize_map", fail)
    Image.new("RGB", (31, 17)).save(pictures / "b/bad.png")
    job.predict(experiment, [pictures / "b"])
    run = job.run_info()
    [issue] = run["issues"]
    assert issue["file"].endswith("bad.png")
    assert issue["kind"] == "output_failed"
    assert (run["num_unreadable"], run["num_failed"]) == (0, 1)
    assert run["num_scored"] + run["num_failed"] == run["num_images"]


def test_decodes_each_image_once(experiment, pictures, job, monkeypatch):
    """Covers the model, its outputs and the threshold; reused images are not decoded."""
    opened = []
    original = score.open_image

    def counted(path, **options):
        opened.append(os.path.relpath(path, pictures))
        return original(path, **options)

    monkeypatch.setattr(score, "open_image", counted)
    asked = thresholds.Threshold(good=str(pictures / "b"), quantile=0.5)
    job.predict(experiment, [pictures / "a"], threshold=asked)
    names = ["a/0.png", "a/1.png", "a/broken.png", "b/0.png", "b/2.jpg", "b/3.tif"]
    assert sorted(opened) == names
    opened.clear()
    job.predict(experiment, [pictures / "a"], threshold=asked)
    assert opened == ["a/broken.png"]
