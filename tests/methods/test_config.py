"""Tests of configs built from mappings: accepted values, and errors."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
from ml_collections import ConfigDict

from zsad_jax.detector import load_detector
from zsad_jax.methods import METHODS, config_class
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.utils.config import check_fields, config_from, within
from zsad_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    kind: Literal["a", "b"] = "a"
    count: int = within(3, 1, 9)
    rate: float = within(0.5, 0)
    layers: tuple[int, ...] = (1, 2)
    name: str | None = None
    fast: bool = False
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    names: tuple[str | Mapping[str, Any], ...] = ()

    def __post_init__(self):
        check_fields(self)


def test_accepts_mappings_and_configs():
    assert config_from(Example, None) == config_from(Example, {}) == Example()
    assert config_from(Example, {"count": 4, "rate": 1}) == Example(count=4, rate=1)
    assert config_from(Example, ConfigDict({"kind": "b", "layers": (3,)})).layers == (3,)
    numbers = Example(count=np.int64(4), rate=np.float32(0.25), layers=[np.int8(3)])
    assert numbers == Example(count=4, rate=0.25, layers=(3,))
    assert [*map(type, (numbers.count, numbers.rate, *numbers.layers))] == [int, float, int]
    ready = Example(count=5)
    assert config_from(Example, ready) is ready


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, r"Unknown key 'cuont'. Did you mean count\?"),
        ({"zzz": 1}, "Unknown key 'zzz'.*Available: kind, count"),
        ({"kind": "c"}, "'kind' is 'c'. Expected 'a' or 'b'"),
        ({"rate": float("inf")}, "'rate' is inf. It must be between 0 and"),
        ({"rate": 10**400}, "'rate' is 1000.* It must be between 0 and"),
        ({"rates": {"a": "b"}}, "'rates' is .* Expected a mapping of strings to numbers"),
        ({"rates": {1: 2}}, "'rates' is .* Expected a mapping of strings to numbers"),
        ({"rates": 1}, "'rates' is 1. Expected a mapping of strings to numbers"),
        ({"names": (1,)}, "'names' is .* Expected a tuple of strings or mappings"),
        ({"names": 1}, "'names' is 1. Expected a tuple of strings or mappings"),
        ({"count": 10}, "'count' is 10. It must be between 1 and 9"),
        ({"count": True}, "'count' is True. Expected an integer"),
        ({"rate": "1"}, "'rate' is '1'. Expected a number"),
        ({"rate": -0.1}, "'rate' is -0.1. It must be between 0 and"),
        ({"rate": float("nan")}, "'rate' is nan"),
        ({"layers": (1, "2")}, "'layers'.*a tuple of integers"),
        ({"name": 3}, "'name' is 3. Expected a string or None"),
        ({"fast": 0}, "'fast' is 0. Expected True or False"),
    ],
)
def test_errors_name_the_mistake(values, message):
    with pytest.raises(UserError, match=message):
        config_from(Example, values)
    known = {field.name for field in dataclasses.fields(Example)}
    if set(values) <= known:
        with pytest.raises(UserError, match=message):
            Example(**values)


RENAMED = [(name, *row) for name in METHODS for row in config_class(name).renamed.items()]


@pytest.mark.parametrize(("name", "old", "new"), RENAMED)
def test_former_key_error_names_the_new_key(name, old, new):
    keys = {field.name for field in dataclasses.fields(config_class(name))}
    assert new.split()[0] in keys
    assert old not in keys
    with pytest.raises(UserError, match=f"Unknown key '{old}'.*renamed to {re.escape(new)}"):
        config_from(config_class(name), {old: 1})


@pytest.mark.parametrize("name", METHODS)
def test_options_of_scoring_are_fields(name):
    cls = config_class(name)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert set(cls.scoring_only) < fields


def test_training_options_of_a_subclass_are_all_by_default():
    class Derived(config_class("anomalyclip")):
        pass

    assert "sigma" in Derived().training_options()


@pytest.mark.parametrize("name", METHODS)
def test_options_are_not_arguments_of_load_detector(name):
    options = {field.name for field in dataclasses.fields(config_class(name))}
    assert not options & set(inspect.signature(load_detector).parameters)


@pytest.mark.parametrize("name", METHODS)
def test_rejects_shared_options_that_a_method_fixes(name):
    shared = {field.name for field in dataclasses.fields(MethodConfig)}
    config = config_class(name)()
    fixed = shared - {field.name for field in dataclasses.fields(config)}
    for key in fixed:
        with pytest.raises(UserError, match=f"Unknown key '{key}'"):
            config_from(config_class(name), {key: getattr(config, key)})
