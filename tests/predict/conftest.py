import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from zsad_jax.detector import Detector
from zsad_jax.experiment.config import from_config
from zsad_jax.methods.shared import prompt_files
from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES
from zsad_jax.predict import __main__ as command
from zsad_jax.predict import run, score
from zsad_jax.utils import command_line

FOLDER = pathlib.Path(__file__).parents[1] / "goldens" / "tipsomaly"
SIZE = 42
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""


@pytest.fixture(scope="session")
def compiled_detectors():
    """Returns the cache of compiled detectors, by everything that they depend on."""
    return {}


@pytest.fixture(autouse=True, scope="module")
def share_compilations(compiled_detectors):
    """Shares one compilation between equal models, over all tests."""
    make_detector = score.make_detector

    def shared(backbone, method, params, **options):
        model = [backbone.digest, backbone.name, backbone.demonstration, backbone.preprocess]
        key = repr([*model, method.config, prompt_files.digest(params), options])
        if key not in compiled_detectors:
            compiled_detectors[key] = make_detector(backbone, method, params, **options)
        return compiled_detectors[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "make_detector", shared)
        yield


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Trains a sentencepiece model that fits the backbone's vocabulary."""
    import sentencepiece

    model = io.BytesIO()
    sentences = [
        sentence
        for family in PROMPT_FAMILIES.values()
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


@pytest.fixture(scope="session")
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
        "distributed": False,
    }


@pytest.fixture(scope="session")
def experiment(config):
    return from_config(config)


@pytest.fixture
def pictures(tmp_path):
    """Writes five images, two with the same name, and a text file with an image suffix."""
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


@pytest.fixture
def forbid_scoring(monkeypatch):
    """Makes scoring fail from here on."""

    def fail(self):
        raise AssertionError("a detector was compiled")

    monkeypatch.setattr(Detector, "scorer", property(fail))
    return monkeypatch


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys, config, run_app):
    """Returns a function that runs the command as a shell would; it returns exit code, stdout and stderr."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(config=config))
    monkeypatch.setattr(command_line, "log_plainly", lambda: None)  # it outlasts the test

    def run(*arguments, config=f"--config={path}"):
        argv = ["predict", *([config] if config else []), *map(str, arguments)]
        return run_app(command.main, "zsad_jax.predict", argv), *capsys.readouterr()

    return run


class Job:
    """A folder for the outputs of `predict`, with functions that run it and read them."""

    def __init__(self, out):
        self.out = out

    def predict(self, experiment, paths, **changes):
        options = score.Options(paths=[str(path) for path in paths], out=self.out, **changes)
        run.predict(experiment, options)

    def rows(self, name="predictions.jsonl"):
        """Returns the records of the images that have a score."""
        return [row for row in self.all_rows(name) if "score" in row]

    def all_rows(self, name="predictions.jsonl"):
        return [json.loads(line) for line in (self.out / name).read_text().splitlines()]

    def contents(self):
        """Returns the bytes of all outputs by their path inside the folder."""
        files = (path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out): path.read_bytes() for path in files}

    def run_info(self):
        return json.loads((self.out / "run.json").read_text())


@pytest.fixture
def job_in():
    """Returns a function that makes a job with the given output folder."""
    return Job


@pytest.fixture
def job(out):
    return Job(out)
