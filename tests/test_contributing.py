"""The examples of CONTRIBUTING.md."""

import pathlib
import re
import runpy

import jax
import numpy as np
import pytest

from zsad_jax import load_backbone, methods
from zsad_jax.experiment.config import from_config
from zsad_jax.methods import Batch

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHOD, CONFIG, REGISTERING, MINIATURE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_paths_exist():
    named = re.findall(r"\b(?:zsad_jax|configs|tests|docs|\.ci)/[\w./-]*\w", TEXT)
    examples = re.compile(r"\b(?:offset|test_offset|gears|FAMILY)\.py$")
    existing = [path for path in named if not examples.search(path)]
    assert len(existing) > 10
    assert not [path for path in existing if not (ROOT / path).exists()]


@pytest.mark.parametrize("code", [CONFIG, MINIATURE])
def test_examples_compile(code):
    compile(code, "CONTRIBUTING.md", "exec")


def test_registered_method_trains_and_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "offset_method.py").write_text(METHOD)
    (tmp_path / "my_offset.py").write_text(REGISTERING)
    config = runpy.run_path(str(tmp_path / "my_offset.py"))["get_config"]("demo")
    experiment = from_config(config)
    backbone = load_backbone("clip-nano", image_size=28)
    experiment.check_method(backbone)
    method = methods.make_method("offset", backbone)
    params = method.init(jax.random.key(0), backbone.params)
    images = jax.random.uniform(jax.random.key(1), (2, 28, 28, 3))
    features = method.features(backbone.params, params, images)
    batch = Batch(
        category=np.array([0, 0]),
        labels=np.array([0, 1]),
        masks=np.zeros((2, 28, 28), np.float32),
        has_mask=np.ones(2, bool),
        valid=np.ones(2, bool),
        class_names=("gear",),
    )

    def loss(params):
        return method.loss(backbone.params, params, features, batch)[0]

    before, gradient = jax.value_and_grad(loss)(params)
    params = jax.tree.map(lambda x, slope: x - 1e-3 * slope, params, gradient)
    assert loss(params) < before
    prototypes = method.prototypes(backbone.params, params, ("gear",))
    scores = method.score(backbone.params, params, prototypes, features, batch.category)
    assert scores.image["global"].shape == (2,)
    assert scores.patches.shape == (2, 2, 2, 1)
