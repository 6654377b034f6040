"""Fixtures with the tiny backbones of the goldens, and the goldens themselves."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

import zsad_jax
from zsad_jax.methods.base import encoder_of
from zsad_jax.train import TrainState, make_optimizer, make_step

FOLDER = pathlib.Path(__file__).parents[1] / "goldens" / "tipsomaly"


def _load(name):
    with np.load(FOLDER / f"{name}_golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(autouse=True, scope="package")
def exact():
    """Runs matrix products in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def prompts_golden():
    return _load("prompts")


@pytest.fixture(scope="session")
def e2e_golden():
    golden = _load("e2e")
    images = golden["images"]
    return golden | {"images": images.astype(np.float32) / np.float32(255), "images_u8": images}


@pytest.fixture(scope="session")
def train_golden():
    return _load("train")


@pytest.fixture(scope="session")
def load_golden_backbone(prompts_golden):
    """Loads the goldens' backbone; its tokenizer knows only the goldens' sentences."""
    known = {}
    for key, sentences in prompts_golden.items():
        if key.endswith("/sentences"):
            stem = key.removesuffix("sentences")
            rows = zip(prompts_golden[f"{stem}ids"], prompts_golden[f"{stem}paddings"], strict=True)
            known |= dict(zip(sentences.tolist(), rows, strict=True))

    def tokenize(texts):
        ids, paddings = zip(*(known[text] for text in texts), strict=True)
        return np.stack(ids).astype(np.int32), np.stack(paddings).astype(np.int32)

    def load(**overrides):
        loaded = zsad_jax.load_backbone(
            "tips",
            vision=FOLDER / "backbone_vision_native.npz",
            text=FOLDER / "backbone_text_native.npz",
            **overrides,
        )
        return dataclasses.replace(loaded, text=dataclasses.replace(loaded.text, tokenize=tokenize))

    return load


@pytest.fixture(scope="session")
def backbone(load_golden_backbone):
    return load_golden_backbone()


@pytest.fixture(scope="session")
def pytorch_backbone(load_golden_backbone):
    """Returns the same weights with the numerics of the PyTorch files, which the published code reads."""
    return load_golden_backbone(gelu_approximate=False, text_ln_eps=1e-5)


@pytest.fixture(scope="session")
def load_golden_clip():
    """Loads the tiny CLIP of a golden folder: `load_golden_clip("anomalyclip")`."""

    @functools.cache
    def load(folder, *, num_heads=4, text_num_heads=4, **overrides):
        return zsad_jax.load_backbone(
            "clip",
            weights=FOLDER.parent / folder / "weights.npz",
            num_heads=num_heads,
            text_num_heads=text_num_heads,
            **overrides,
        )

    return load


@pytest.fixture(scope="session")
def with_words():
    """Gives a CLIP a tokenizer of a few words: `with_words(clip, {"photo": [1125]})`."""

    def replace(clip, words):
        def tokenize(texts):
            ids = np.zeros((len(texts), 77), np.int32)
            for row, text in zip(ids, texts, strict=True):
                known = [
                    number for word in text.replace(".", " .").split() for number in words[word]
                ]
                row[: len(known) + 2] = [49406, *known, 49407]
            return ids, np.int32(ids == 0)

        side = dataclasses.replace(clip.text, tokenize=tokenize)
        return dataclasses.replace(clip, text=side, forms={})

    return replace


@pytest.fixture(scope="session")
def read_golden():
    """Reads an npz file of the goldens: `read_golden("faprompt", "expected")`."""

    @functools.cache
    def read(folder, name):
        with np.load(FOLDER.parent / folder / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return read


@pytest.fixture(scope="session")
def train_as_configured(included_experiment):
    """Yields (parameters, losses) of each training step, as configured in `configs/<method>.py`.

    Arguments: the method, its backbone, the initial parameters, (8-bit images, batch) of each step, and
    fields of the training config that differ from the file.
    """

    def run(method, backbone, params, batches, **changes):
        config = included_experiment(method.name).training_config
        config = dataclasses.replace(config, **changes)
        (stage,), encode = method.stages, jax.jit(encoder_of(method)[1])
        optimizer = make_optimizer(config, method, params, stage)
        step = jax.jit(make_step(method, backbone, optimizer, stage))
        state = TrainState(params, optimizer.init(params))
        for images, batch in batches:
            features = encode(backbone.params, {}, backbone.preprocess.normalize(images))
            state, losses = step(backbone.params, state, features, batch)
            yield state.params, losses

    return run


@pytest.fixture(scope="session")
def assert_near():
    """Compares with a golden; the error is relative to the golden's largest entry."""

    def check(found, golden, tolerance, *, scale=None):
        found, golden = np.asarray(found), np.asarray(golden)
        assert found.shape == golden.shape
        largest = np.abs(golden).max() if scale is None else scale
        assert np.abs(found - golden).max() <= tolerance * largest

    return check
