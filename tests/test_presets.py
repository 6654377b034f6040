"""Every config and variant, and what a command line can set in them."""

import pathlib
import re
import subprocess
import sys
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from zsad_jax.errors import UserError
from zsad_jax.experiment import Experiment, from_config
from zsad_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def parse(config, *overrides):
    """The experiment of a command line."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    line = ["main", f"--config={ROOT / 'configs' / config}", *overrides]
    with mock.patch.object(sys, "argv", line):  # where overrides are looked for
        values(line)
    return from_config(holder.value)


def variants():
    for path in CONFIGS:
        named = re.findall(rf"configs/{path.name}:(\w+)", path.read_text(encoding="utf-8"))
        yield from (f"{path.name}{':' * bool(name)}{name}" for name in dict.fromkeys(["", *named]))


def test_every_method_has_a_config():
    assert {path.stem for path in CONFIGS} == set(METHODS)


@pytest.mark.parametrize("config", variants())
def test_every_variant_is_an_experiment(config):
    experiment = parse(config)
    assert experiment.method["name"] == config.partition(".")[0]
    demonstration = ":demo" in config
    assert ("nano" in experiment.backbone["name"]) == demonstration
    assert bool(experiment.hint) != demonstration


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("checkpoints.mvtec_ad=CONFIG", lambda e: bool(e.checkpoints["mvtec_ad"])),
        ("backbone.activation=gelu", lambda e: e.backbone["activation"] == "gelu"),
        ("backbone.num_heads=8", lambda e: e.backbone["num_heads"] == 8),
        ("method.vv_from=None", lambda e: e.method["vv_from"] is None),
        ("method.vv_from=12", lambda e: e.method["vv_from"] == 12),
        ("method.temperature=None", lambda e: e.method["temperature"] is None),
        ("method.temperature=0.1", lambda e: e.method["temperature"] == 0.1),
        ("training.optimizer=sgd", lambda e: e.training_config.optimizer == "sgd"),
        ("training.warmup_epochs=1", lambda e: e.training_config.warmup_epochs == 1),
        ("targets=('mpdd', 'btad')", lambda e: e.targets == ("mpdd", "btad")),
    ],
)
def test_what_a_command_line_sets(override, read):
    override = override.replace("CONFIG", str(CONFIGS[0]))  # any file that is there
    train = "--config.train=False"
    assert read(parse("anomalyclip.py", f"--config.{override}", train))


def test_unset_options_say_nothing():
    experiment = parse("anomalyclip.py")
    assert experiment.checkpoints == {}
    assert experiment.training_config.b1 == 0.5


def test_an_unknown_variant_is_told():
    with pytest.raises((ValueError, flags.Error), match="there are :demo and :demo_tips"):
        parse("coop.py:demo_clip")


def test_other_methods_beside_the_main_one():
    options = {"method": {"name": "coop", "sigma": 2.0}, "backbone": {"name": "clip-nano"}}
    comparisons = {"plain": {"name": "clip"}, "middle": {"position": "middle"}}
    experiment = Experiment(**options, targets=("visa",), comparisons=comparisons)
    assert experiment.method_options("plain", sigma=3.0) == {"name": "clip"}
    assert experiment.method_options("middle")["sigma"] == 2.0
    with pytest.raises(UserError, match="Unknown key 'position' for ClipConfig"):
        Experiment(
            **options,
            targets=("visa",),
            comparisons={"plain": {"name": "clip", "position": "end"}},
        )


def test_training_what_learns_nothing_is_refused(tmp_path):
    command = [sys.executable, "-m", "zsad_jax.main", "--config", ROOT / "configs/clip.py:demo"]
    done = subprocess.run(
        [*command, "--config.train=True", f"--workdir={tmp_path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "config.train is True, but clip as configured learns nothing" in done.stderr
