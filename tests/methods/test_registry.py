"""Methods by name."""

import subprocess
import sys

import pytest

from zsad_jax.methods import METHODS, make_method
from zsad_jax.methods.tipsomaly import TIPSomalyConfig
from zsad_jax.utils.errors import UserError


@pytest.mark.parametrize("name", METHODS)
def test_every_name_makes_its_method(load_golden_clip, name):
    assert make_method(name, load_golden_clip("anomalyclip")).name == name


def test_config_as_mapping_or_dataclass(backbone):
    assert make_method("tipsomaly", backbone, {"num_prompts": 2})
    assert make_method("tipsomaly", backbone, TIPSomalyConfig(num_prompts=2))


def test_an_unknown_name_is_one_sentence(backbone):
    with pytest.raises(UserError, match=r"Unknown method 'tipsomoly'; did you mean tipsomaly\?"):
        make_method("tipsomoly", backbone)


def test_methods_are_imported_when_they_are_made():
    code = "import sys, zsad_jax.methods; sys.exit('zsad_jax.methods.tipsomaly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
