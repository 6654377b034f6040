import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from zsad_jax import command, decisions, learned, predict, scoring
from zsad_jax import detector as detectors
from zsad_jax.errors import UserError
from zsad_jax.experiment import Experiment, from_config
from zsad_jax.methods.prompts import FAMILIES
from zsad_jax.report import DEMONSTRATION

FOLDER = pathlib.Path(__file__).parent / "goldens" / "tipsomaly"
SIZE = 42
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Less optimisation: these tests spend their time compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def compiled_once(quick):
    """Equal models share a compilation, over all tests."""
    compiled = {}
    make_detector = scoring.make_detector

    def shared(backbone, method, params, **options):
        key = repr([backbone.digest, method.config, learned.digest(params), options])
        if key not in compiled:
            compiled[key] = make_detector(backbone, method, params, **options).compiled()
        return types.SimpleNamespace(compiled=lambda: compiled[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "make_detector", shared)
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A sentencepiece model small enough for the backbone's vocabulary."""
    import sentencepiece

    model = io.BytesIO()
    sentences = [
        sentence
        for family in FAMILIES.values()
        for state in family.sentences("object")
        for sentence in state
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def config(tokenizer):
    return {
        "method": {"name": "tipsomaly", "sigma": 1.0},
        "backbone": {
            "name": "tips",
            "vision": str(FOLDER / "backbone_vision_native.npz"),
            "text": str(FOLDER / "backbone_text_native.npz"),
            "tokenizer": str(tokenizer),
            "image_size": SIZE,
        },
        "targets": ("synthetic_target",),
        "auxiliary": "synthetic_aux",
        "batch_size": 4,
    }


@pytest.fixture(scope="module")
def experiment(config):
    return from_config(config)


@pytest.fixture
def pictures(tmp_path):
    """Five images, two of them with the same name, and a text file called an image."""
    rng = np.random.default_rng(0)
    shapes = {"a/0.png": (40, 20), "a/1.png": (30, 70), "b/0.png": (42, 42), "b/2.jpg": (9, 500)}
    for name, (height, width) in shapes.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    deep = rng.integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "images/b/3.tif")
    (tmp_path / "images/a/broken.png").write_text("no picture")
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def options(paths, out, **changes):
    return predict.Options(paths=[str(path) for path in paths], out=out, **changes)


def rows_of(out, name="predictions.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def run_of(out):
    return json.loads((out / "run.json").read_text())


@pytest.fixture
def no_model(monkeypatch):
    """From here on, nothing may be scored."""

    def fail(*args, **kwargs):
        raise AssertionError("a detector was made")

    monkeypatch.setattr(scoring, "make_detector", fail)
    return monkeypatch


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys, config):
    """Runs the command as a shell would; gives exit code, what it said, and its mistakes."""
    import grain  # noqa: F401 - defines flags of its own, which must outlive the restored ones

    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(config=config))
    monkeypatch.setattr(predict, "log_plainly", lambda: None)  # it would outlive the test

    def run(*arguments, config=f"--config={path}"):
        argv = ["predict", *([config] if config else []), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        with flagsaver.flagsaver():
            try:
                flags.FLAGS.unparse_flags()
                predict.main(command.flags_parser("zsad_jax.predict")(argv))
            except SystemExit as ended:
                return ended.code, *capsys.readouterr()
        raise AssertionError("the command did not end")

    return run


def test_the_command_from_images_to_results(run_command, pictures, out, experiment):
    code, said, _ = run_command(
        pictures, "--out", out, "--threshold=1.0", "--pixel_threshold=0.5", "--category=metal nut"
    )
    assert code == 0
    assert "tipsomaly over tips, 42 pixels" in said
    assert "fixed prompts; industrial words" in said
    assert 'category "metal nut", image score first' in said
    assert "5 images scored, 0 taken over" in said
    assert "1 skipped" in said

    rows = rows_of(out)
    names = [os.path.relpath(row["path"], pictures) for row in rows]
    assert names == ["a/0.png", "a/1.png", "b/0.png", "b/2.jpg", "b/3.tif"]
    for row in rows:
        size = Image.open(row["path"]).size
        assert row["size"] == list(size)
        assert np.load(out / row["map"]).shape == size[::-1]
        assert Image.open(out / row["mask"]).size == size
        assert row["decision"] == ("anomalous" if row["score"] > 1 else "normal")
        assert row["time"] > 0
        assert (out / row["figure"]).exists()
        assert "warning" not in row
        assert ("note" in row) == row["path"].endswith(".tif")
    assert rows[4]["note"] == "16-bit values 0 to 65535 scaled to 8 bits"
    assert len({row["map"] for row in rows}) == 5

    run = run_of(out)
    assert (run["num_images"], run["num_scored"], run["num_taken_over"]) == (6, 5, 0)
    [unreadable] = run["unreadable"]
    assert unreadable["path"].endswith("a/broken.png")
    assert "not an image" in unreadable["reason"]
    assert run["settings"]["scale"] == [0, 1]
    assert run["model"]["prompts"] == "fixed prompts"
    assert not run["demonstration"]

    found = detectors.load_detector(
        "tipsomaly", experiment.load_backbone(), category="metal nut", sigma=1.0
    ).predict([row["path"] for row in rows])
    np.testing.assert_allclose([row["score"] for row in rows], found.score, atol=2e-6)
    square = np.load(out / rows[2]["map"])
    np.testing.assert_allclose(square, found.anomaly_map[2], atol=1e-5)


@pytest.fixture
def finished(experiment, pictures, out):
    """A finished run, and what its rows said."""
    predict.predict(experiment, options([pictures], out))
    return (out / "predictions.jsonl").read_bytes()


def test_the_second_run_does_no_work(experiment, pictures, out, finished, no_model):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    predict.predict(experiment, options([pictures], out))
    assert (out / "predictions.jsonl").read_bytes() == finished
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} == {"run.json"}
    assert run_of(out)["num_scored"] == 0
    assert run_of(out)["num_taken_over"] == 5


def count_scored(monkeypatch):
    """Lists the images that are scored from here on."""
    scored = []
    original = predict.score_images

    def listed(model, images, *args, **kwargs):
        scored.extend(os.path.basename(image) for image in images)
        return original(model, images, *args, **kwargs)

    monkeypatch.setattr(predict, "score_images", listed)
    return scored


def test_only_what_has_changed_is_done_again(experiment, pictures, out, finished, monkeypatch):
    scored = count_scored(monkeypatch)
    Image.new("RGB", (40, 20), "red").save(pictures / "a/1.png")  # another file under the name
    Image.new("RGB", (10, 10), "blue").save(pictures / "b/1.png")  # a new one
    os.unlink(out / rows_of(out)[3]["figure"])  # b/2.jpg has lost its picture
    predict.predict(experiment, options([pictures], out))
    assert sorted(scored) == ["1.png", "1.png", "2.jpg", "broken.png"]
    rows = rows_of(out)
    assert [os.path.relpath(row["path"], pictures) for row in rows] == [
        "a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.jpg", "b/3.tif"
    ]  # fmt: skip
    assert rows[1]["size"] == [40, 20]
    assert run_of(out)["num_taken_over"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"category": "wood"},
        {"prompt_family": "medical"},
        {"scale": (0.0, 0.5)},
        {"map_size": 20},
        {"pixel_threshold": 0.5},
        {"threshold": decisions.Threshold(value=0.6)},
        {"config": {"method": {"name": "tipsomaly", "sigma": 2.0}}},
        {"config": {"image_score": "second"}},
    ],
    ids=str,
)
def test_other_options_do_everything_again(
    config, experiment, pictures, out, finished, monkeypatch, change
):
    class StoppedError(Exception):
        pass

    def stop(model, images, *args, **kwargs):
        raise StoppedError(len(images))

    monkeypatch.setattr(predict, "score_images", stop)
    changed = from_config(config | change.pop("config", {}))
    with pytest.raises(StoppedError, match="6"):
        predict.predict(changed, options([pictures], out, **change))


def test_what_was_finished_when_the_process_died_is_kept(run_command, pictures, out, monkeypatch):
    """Killed while it writes the fourth image; the same command then does the rest."""
    script = textwrap.dedent(f"""
        import os, signal, sys, threading
        from absl import app
        from zsad_jax import command, predict, predictions
        original, count, lock = predictions.Writer.write, 0, threading.Lock()

        def write(self, *arguments):
            global count
            with lock:
                count += 1
                if count == 4:
                    with open({str(out / "predictions.jsonl")!r}, "a") as file:
                        file.write('{{"path": "half a li')
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, *arguments)

        predictions.Writer.write = write
        predict.MAX_WRITERS = 1
        app.run(predict.main, flags_parser=command.flags_parser("zsad_jax.predict"))
    """)
    config = pictures.parent / "config.py"
    command_line = [
        sys.executable,
        "-c",
        script,
        str(pictures),
        f"--out={out}",
        f"--config={config}",
    ]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    died = subprocess.run(command_line, env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (out / "run.json").exists()
    kept = rows_of_cut(out)
    assert len(kept) == 3

    scored = count_scored(monkeypatch)
    code, said, _ = run_command(pictures, "--out", out)
    assert code == 0
    assert "2 images scored, 3 taken over" in said
    assert sorted(scored) == ["2.jpg", "3.tif", "broken.png"]
    rows = rows_of(out)
    assert rows[:3] == kept
    assert len({row["path"] for row in rows}) == len(rows) == 5
    assert not list(out.rglob(".*part*"))


def rows_of_cut(out):
    *lines, cut = (out / "predictions.jsonl").read_text().splitlines()
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(cut)
    return [json.loads(line) for line in lines]


def test_results_among_the_images_are_not_scored(experiment, pictures):
    for expected in (5, 0):
        predict.predict(experiment, options([pictures], pictures, pixel_threshold=0.5))
        assert run_of(pictures)["num_scored"] == expected
        assert run_of(pictures)["num_images"] == 6


def test_rows_of_other_images_are_left_out_with_a_word(experiment, pictures, out, caplog):
    predict.predict(experiment, options([pictures / "a"], out))
    predict.predict(experiment, options([pictures / "b"], out))
    assert "2 earlier rows" in caplog.text
    assert [row["path"] for row in rows_of(out)] == [
        str(pictures / name) for name in ("b/0.png", "b/2.jpg", "b/3.tif")
    ]


def test_a_threshold_from_known_good_images(experiment, pictures, out, caplog):
    asked = decisions.Threshold(good=str(pictures / "b"), quantile=0.5)
    predict.predict(experiment, options([pictures], out, threshold=asked))
    good = rows_of(out, "known_good.jsonl")
    rows = rows_of(out)
    by_path = {row["path"]: row["score"] for row in rows}
    assert [row["score"] for row in good] == pytest.approx(
        [by_path[row["path"]] for row in good], abs=2e-6
    )
    threshold = sorted(row["score"] for row in good)[1]  # two of three are not above it
    assert run_of(out)["threshold"] | {"from": ""} == {
        "value": threshold, "from": "", "quantile": 0.5, "num_images": 3, "warning": None
    }  # fmt: skip
    for row in rows:
        assert row["decision"] == ("anomalous" if row["score"] > threshold else "normal")
    assert "known-good" not in caplog.text


def test_the_second_run_scores_no_known_good_images_either(
    experiment, pictures, out, capsys, caplog, monkeypatch
):
    asked = decisions.Threshold(good=str(pictures / "b"), quantile=0.99)
    both = options([pictures / "a"], out, threshold=asked)
    predict.predict(experiment, both)
    assert "needs at least 100 known-good images and there are 3" in caplog.text
    assert "100" in run_of(out)["threshold"]["warning"]
    first = capsys.readouterr().out
    scored = count_scored(monkeypatch)
    predict.predict(experiment, both)
    assert scored == ["broken.png"]
    decided = re.compile(r".* anomalous, .*")
    assert decided.search(capsys.readouterr().out)[0] == decided.search(first)[0]


def test_without_a_threshold_nothing_is_decided(experiment, pictures, out, capsys):
    predict.predict(experiment, options([pictures / "b"], out))
    assert all("decision" not in row and "regions" not in row for row in rows_of(out))
    assert "anomalous" not in capsys.readouterr().out
    assert run_of(out)["threshold"] is None


def test_a_demonstration_model_says_so_everywhere(experiment, pictures, out, capsys, monkeypatch):
    import dataclasses

    backbone = dataclasses.replace(experiment.load_backbone(), name="tips-nano", demonstration=True)
    monkeypatch.setattr(Experiment, "load_backbone", lambda self: backbone)
    predict.predict(experiment, options([pictures / "b"], out))
    for row in rows_of(out):
        assert row["warning"] == DEMONSTRATION
        assert Image.open(out / row["figure"]).text["Comment"] == DEMONSTRATION
    assert run_of(out)["warning"] == DEMONSTRATION
    assert run_of(out)["demonstration"] is True
    assert (out / "WARNING.txt").read_text().strip() == DEMONSTRATION
    assert capsys.readouterr().out.count(DEMONSTRATION) == 2
    monkeypatch.undo()
    predict.predict(experiment, options([pictures / "b"], out))
    assert not (out / "WARNING.txt").exists()
    assert not any("warning" in row for row in rows_of(out))


def load(experiment, **changes):
    given = {"checkpoint": None, "category": "object", "prompt_family": None, "num_images": 9}
    return scoring.load_model(experiment, **given | changes)


def test_prompts_given_then_the_configs_then_those_that_ship(
    config, experiment, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(detectors, "ASSETS", tmp_path)
    plain = load(experiment)
    assert plain.prompts == "fixed prompts"
    assert "fixed prompts are used" in caplog.text

    names = ("given.npz", "config.npz", "tips/tipsomaly_prompts.npz")
    given, configured, shipped = paths = [str(tmp_path / name) for name in names]
    for seed, path in enumerate(paths):
        key = jax.random.key(seed)
        learned.save(path, plain.method.init(key, plain.backbone.params))
    assert load(experiment).prompts == "prompts that ship with tips"
    with_config = from_config(config | {"checkpoints": {"synthetic_aux": configured}})
    assert load(with_config).prompts == configured
    assert load(with_config, checkpoint=given).prompts == given
    keys = {
        load(experiment).key, load(with_config).key, load(with_config, checkpoint=given).key, plain.key
    }  # fmt: skip
    assert len(keys) == 4
    # The same prompts under another name are the same.
    assert load(experiment, checkpoint=shipped).key == load(experiment).key

    fixed = from_config(
        config
        | {"checkpoints": {"synthetic_aux": configured}}
        | {"method": {"name": "tipsomaly", "learning": "none"}}
    )
    assert load(fixed).prompts == "fixed prompts"


def test_the_batch_is_no_larger_than_what_there_is(experiment):
    assert load(experiment, num_images=2).batch_size == 2
    assert load(experiment, num_images=100).batch_size == 4


@pytest.fixture
def no_long_work(monkeypatch):
    """A mistake must be told before weights are read."""

    def fail(self):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Experiment, "load_backbone", fail)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{images}"], "--out DIR"),
        (["--out={out}"], "Name images"),
        (["{images}/none", "--out={out}"], "no file or folder .*none"),
        (["{empty}", "--out={out}"], "No images found in"),
        (["{images}", "--out={out}", "--threshold=high"], "neither a number nor FOLDER:QUANTILE"),
        (["{images}", "--out={out}", "--threshold={images}/none:0.9"], "no file or folder"),
        (["{images}", "--out={out}", "--scale=1,0"], "not LOW,HIGH"),
        (["{images}", "--out={out}", "--prompts=poetic"], "poetic"),
        (["{images}", "--out={out}", "--map_size=0"], "map_size"),
        (["{images}", "--out={out}", "--batch_size=x"], "batch_size"),
        (["{images}", "--out={out}", "--nothing=1"], "nothing"),
        (["{images}", "--out={out}", "--checkpoint=none.npz"], "none.npz is neither a file nor"),
        (["{images}", "--out={images}/a/0.png"], "cannot be written to"),
        (["{images}", "--out={out}", "--config.method.sigmar=1"], "sigmar"),
        (["{images}", "--out={out}", "--config.bach_size=1"], "config.batch_size"),
    ],
)
def test_mistakes_end_in_a_sentence(
    run_command, pictures, out, tmp_path, no_long_work, arguments, words
):
    (tmp_path / "empty").mkdir()
    places = {"images": pictures, "out": out, "empty": tmp_path / "empty"}
    code, _, said = run_command(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert re.search(words, said), said
    [line] = said.strip().splitlines()
    assert line.startswith("error: ")


def test_a_missing_config_is_named(run_command, pictures, out):
    code, _, said = run_command(pictures, f"--out={out}", config=None)
    assert (code, said.startswith("error: Name a config")) == (2, True)
    code, _, said = run_command(pictures, f"--out={out}", config="--config=none.py")
    assert code == 2
    assert "none.py" in said


def test_a_pixel_threshold_outside_the_maps_is_refused(experiment, pictures, out, no_model):
    with pytest.raises(UserError, match="at least 0 and less than 1"):
        predict.predict(experiment, options([pictures], out, pixel_threshold=1.0))


def test_nothing_readable_is_a_mistake(run_command, pictures, out, no_model):
    code, _, said = run_command(pictures / "a/broken.png", "--out", out)
    assert code == 2
    assert "None of the 1 images could be read" in said
    assert "broken.png" in said


def test_a_full_disk_is_told_and_loses_nothing(experiment, pictures, out, monkeypatch):
    original = predict.Writer.write

    def write(self, path, *arguments):
        if path.endswith("2.jpg"):
            raise OSError(28, "No space left on device")
        return original(self, path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predict.Writer, "write", write)
        with pytest.raises(UserError, match=r"No space left on device.*Nothing finished is lost"):
            predict.predict(experiment, options([pictures], out))
    predict.predict(experiment, options([pictures], out))
    assert run_of(out)["num_taken_over"] >= 3
    assert len(rows_of(out)) == 5
