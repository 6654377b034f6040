"""Tests of methods by name."""

import dataclasses
import re
import subprocess
import sys

import pytest

from zsad_jax import methods
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.methods import METHODS, make_method
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.methods.tipsomaly import TIPSomalyConfig, tipsomaly
from zsad_jax.utils.errors import UserError


@pytest.mark.parametrize("name", METHODS)
def test_makes_each_method_by_name(name):
    assert make_method(name, describe_backbone("clip-vit-l14-336")).name == name


def test_config_as_mapping_or_dataclass(backbone):
    assert make_method("tipsomaly", backbone, {"num_prompts": 2})
    assert make_method("tipsomaly", backbone, TIPSomalyConfig(num_prompts=2))


def test_rejects_unknown_name(backbone):
    with pytest.raises(UserError, match=r"Unknown method 'tipsomoly'. Did you mean tipsomaly\?"):
        make_method("tipsomoly", backbone)


def test_rejects_arguments_of_other_types(backbone):
    for arguments in ((5, backbone), ("tipsomaly", "tips-nano"), ("tipsomaly", backbone, 5)):
        with pytest.raises(UserError, match="is not a"):
            make_method(*arguments)


def test_registers_method_from_outside(backbone, monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MineConfig(TIPSomalyConfig):
        name = "mine"
        num_prompts: int = 2

    for _ in range(2):  # like a config file that is loaded twice
        methods.register(tipsomaly, MineConfig)
    made = make_method("mine", backbone, {"sigma": 2.0})
    assert (made.name, made.config) == ("mine", MineConfig(sigma=2.0))
    assert methods.config_class("mine") is MineConfig
    with pytest.raises(UserError, match="'tipsomaly' is the name of an included method"):
        methods.register(tipsomaly, TIPSomalyConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathConfig(TIPSomalyConfig):
    name = "../x"


class PlainConfig(TIPSomalyConfig):
    name = "plain"
    width: int = 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((tipsomaly, TIPSomalyConfig()), "Expected a function and a class"),
        ((TIPSomalyConfig, tipsomaly), "Expected a function and a class"),
        ((tipsomaly, MethodConfig), "MethodConfig.name is "),
        ((tipsomaly, PathConfig), "PathConfig.name is '../x'. Expected letters"),
        ((tipsomaly, PlainConfig), "PlainConfig.width is not a field. Decorate"),
    ],
)
def test_rejects_methods_that_would_not_work(arguments, words):
    with pytest.raises(UserError, match=re.escape(words)):
        methods.register(*arguments)


def test_methods_are_imported_when_made():
    code = "import sys, zsad_jax.methods; sys.exit('zsad_jax.methods.tipsomaly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
