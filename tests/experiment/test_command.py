"""Tests of invalid command-line arguments: each is rejected in one line before anything is opened."""

import re
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from zsad_jax import main, presets
from zsad_jax.experiment import config_flag
from zsad_jax.utils import command_line

CONFIG = """
from zsad_jax import presets

def get_config(variant=""):
    config = presets.paper("coop")
    if variant == "broken":
        config.no_such_key.at_all = 1
        variant = ""
    return presets.vary(config, variant, {"raises": _raise})

def _raise(config):
    raise ValueError("sigma must be positive")
"""


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Returns a function that runs the main command, and returns the exit code and stderr."""
    import grain  # noqa: F401 - defines flags, which must outlive the restored ones

    def fail(*_):
        raise AssertionError("the experiment was started")

    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    monkeypatch.setattr(main, "run_experiment", fail)
    monkeypatch.setattr(main, "log_plainly", lambda: None)

    def run(*arguments, variant=""):
        argv = ["main", f"--config={path}{variant}", f"--workdir={tmp_path / 'out'}", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        flags.FLAGS.unparse_flags()
        with flagsaver.flagsaver():
            try:
                sys.exit(
                    command_line.guarded(
                        lambda: main.main(config_flag.flags_parser("zsad_jax.main")(argv))
                    )
                )
            except SystemExit as ended:
                return ended.code, capsys.readouterr().err
        raise AssertionError("the command did not end")

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sigma=8"], "Unexpected argument 'sigma=8'. Did you mean --config.method.sigma=8?"),
        (["sigm=8"], "Unexpected argument 'sigm=8'. Did you mean --config.method.sigma=8?"),
        (
            ["config.method.sigma=8"],
            "Unexpected argument 'config.method.sigma=8'. Did you mean --config.method.sigma=8?",
        ),
        (
            ["training.epochs=3", "--config.seed=1"],
            "Unexpected argument 'training.epochs=3'. Did you mean --config.training.epochs=3?",
        ),
        (["workdir=out"], "Unexpected argument 'workdir=out'. Did you mean --workdir=out?"),
        (
            ["sigma", "8"],
            "Unexpected argument 'sigma'. Did you mean --config.method.sigma=VALUE?",
        ),
        (
            ["name=x"],
            "Unexpected argument 'name=x'. Did you mean --config.backbone.name=x or"
            " --config.method.name=x?",
        ),
        (["zzz"], "Unexpected argument 'zzz'. Options have the form --NAME=VALUE."),
    ],
)
def test_rejects_stray_arguments(run_main, arguments, expected):
    assert run_main(*arguments) == (2, f"error: {expected}\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--config.backbone.image_siz=3"],
            "config.backbone.image_siz does not exist. Did you mean config.backbone.image_size?",
        ),
        (
            ["--config.method.sigm=3"],
            "config.method.sigm does not exist. Did you mean config.method.sigma?",
        ),
        (
            ["--config.seed=3", "--config.sead=3"],
            "config.sead does not exist. Did you mean config.seed?",
        ),
        (
            ["--noconfig.trian"],
            "config.trian does not exist. Did you mean config.train?",
        ),
        (
            ["--config.method.sigma.x=3"],
            "config.method.sigma.x does not exist. Did you mean config.method.sigma?",
        ),
        (
            ["--config.zzz=3"],
            "config.zzz does not exist. Available: auxiliary, auxiliary_for, backbone, batch_size, checkpoints,"
            " comparisons, data, data_dir, exact_metrics, image_score, method, method_for and 7 more.",
        ),
    ],
)
def test_suggests_known_key(run_main, arguments, expected):
    assert run_main(*arguments) == (2, f"error: {expected}\n")


def test_reports_mistake_in_config_file(run_main):
    code, said = run_main("--config.seed=3", variant=":broken")
    assert code == 2
    assert re.match("error: Cannot load .*config.py:broken ", said)
    assert "no_such_key" in said


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (
            "raises",
            "Cannot load .*config.py:raises .ValueError: sigma must be positive.. Correct the config",
        ),
        ("demo", "Unknown variant 'demo'. Available: raises"),
    ],
)
def test_config_file_error_has_no_traceback(run_main, variant, reason):
    code, said = run_main(variant=f":{variant}")
    assert (code, said.count("\n")) == (2, 1)
    assert re.match(f"error: {reason}", said)


def test_all_keys_of_a_config_are_known():
    keys = config_flag._keys(presets.paper("coop"))
    assert {"seed", "method.sigma", "training.epochs", "method_for", "checkpoints.visa"} <= set(
        keys
    )
    assert "method" not in keys
