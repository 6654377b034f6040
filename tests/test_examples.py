"""Tests of the examples in the docstrings of public functions."""

import doctest
import inspect

import numpy as np
import pytest
from PIL import Image

import zsad_jax
from zsad_jax import backbones, data, methods, metrics

PUBLIC = [
    *(
        (package, name)
        for package in (metrics, methods, data, backbones)
        for name in package.__all__
    ),
    *((zsad_jax, name) for name in ("load_detector", "Detector")),
    *((zsad_jax.presets, name) for name in ("paper", "demo", "vary")),
]
FUNCTIONS = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package, name in PUBLIC
    if inspect.isfunction(getattr(package, name))
} | {"zsad_jax.Detector.predict": zsad_jax.Detector.predict}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Creates the working directory of the examples, with two images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))  # an example registers a method
    for name in ("part_1.png", "part_2.png"):
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_example_runs(name, folder):
    function = FUNCTIONS[name]
    scope = dict(vars(inspect.getmodule(function)))
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=scope)
    assert found.examples, "the docstring has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found)
    assert result.failed == 0
