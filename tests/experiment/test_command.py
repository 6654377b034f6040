"""Tests of invalid command-line arguments: each is rejected in one line before anything is opened."""

import re

import pytest

from zsad_jax import main, presets
from zsad_jax.experiment import config_keys
from zsad_jax.methods import METHODS

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
def run_main(tmp_path, monkeypatch, capsys, run_app):
    """Returns a function that runs the main command, and returns the exit code and stderr."""

    def fail(*_):
        raise AssertionError("the experiment was started")

    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    monkeypatch.setattr(main, "run_experiment", fail)
    monkeypatch.setattr(main, "log_plainly", lambda: None)

    def run(*arguments, variant=""):
        argv = ["main", f"--config={path}{variant}", f"--workdir={tmp_path / 'out'}", *arguments]
        return run_app(main.main, "zsad_jax.main", argv), capsys.readouterr().err

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
            "config.sead does not exist. Did you mean config.seed or config.seeds?",
        ),
        (
            ["--config.method.local_loss=True"],
            "config.method.local_loss does not exist. It was renamed to"
            " config.method.lam (1.0 for True, 0.0 for False).",
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
            " comparisons, data, data_dir, distributed, exact_metrics, features, image_score and 14 more.",
        ),
    ],
)
def test_suggests_known_key(run_main, arguments, expected):
    assert run_main(*arguments) == (2, f"error: {expected}\n")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--confg.seed=1",
            "Unknown option '--confg.seed'. Did you mean --config.seed or --config.seeds? See",
        ),
        ("--lst", "Unknown option '--lst'. Did you mean --list? See"),
        ("--list=5", "--list is '5'. Expected True or False."),
        ("--zzz", "Unknown option '--zzz'. See python -m zsad_jax.main --help."),
    ],
)
def test_describes_wrong_options(run_main, argument, expected):
    code, said = run_main(argument)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {expected}")


def test_reports_mistake_in_config_file(run_main):
    code, said = run_main("--config.seed=3", variant=":broken")
    assert code == 2
    assert re.match(r"error: Cannot load .*config.py:broken, line \d+ ", said)
    assert "no_such_key" in said


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (
            "raises",
            r"Cannot load .*config.py:raises, line \d+ .ValueError: sigma must be positive.. Correct",
        ),
        ("demo", "Unknown variant 'demo'. Available: raises"),
    ],
)
def test_config_file_error_has_no_traceback(run_main, variant, reason):
    code, said = run_main(variant=f":{variant}")
    assert (code, said.count("\n")) == (2, 1)
    assert re.match(f"error: {reason}", said)


def test_all_keys_of_a_config_are_known():
    keys = config_keys.flatten(presets.paper("coop"))
    assert {"seed", "method.sigma", "training.epochs", "method_for", "checkpoints.visa"} <= set(
        keys
    )
    assert "method" not in keys


@pytest.mark.parametrize("method", METHODS)
def test_all_keys_have_a_type_and_a_description(method):
    config = presets.paper(method)
    described = config_keys.describe_keys(config)
    for key in config_keys.flatten(config):
        kind, description = described[key]
        assert len(description) > 3, key
        assert "typing" not in kind, key


def test_lists_keys_with_values_and_descriptions(run_main):
    config = presets.paper("coop")
    config.training.learning_rates.prompts = 1e-3
    lines = config_keys.list_keys(config)
    rate = "--config.training.learning_rates.prompts=0.001\n    A mapping of strings to numbers: of single"
    assert rate in lines
    assert lines.index("backbone.num_heads") < lines.index("backbone.text_num_heads")
    assert (
        "--config.method.sigma=4.0\n    A number: standard deviation of the map's Gaussian" in lines
    )
    assert run_main("--keys") == (0, "")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "method=clip",
            "config.method is 'clip'. Expected a mapping. Set its keys, for example"
            " --config.method.name=clip. To list all keys: python -m zsad_jax.main --config CONFIG --keys",
        ),
        ("training=5", "Set its keys, for example --config.training.b1=0.5."),
        ("batch_size=2.5", "config.batch_size is '2.5'. Expected an integer."),
        ("seed=1,2,3", "config.seed is '1,2,3'. Expected an integer."),
        ("train=yes", "config.train is 'yes'. Expected True or False."),
        ("checkpoints=5", "config.checkpoints is '5'. Expected a mapping of strings to strings."),
        ("seed=-1", "'seed' is -1. It must be between 0 and"),
        ("batch_size=100000000", "'batch_size' is 100000000. It must be between 1 and"),
        ("training.batch_size=1" + "0" * 22, "config.training: Config key 'batch_size' is 1000"),
        ("method.sigma=inf", "config.method: Config key 'sigma' is inf. It must be between 0 and"),
        ("training.learning_rate=inf", "'learning_rate' is inf. It must be between 0 and"),
        (
            "training.learning_rates={'a': -1}",
            "'learning_rates' is {'a': -1}. It must be between 0 and",
        ),
        ("data=parts", "config.data is 'parts'. Write {'folder': 'parts'}, or"),
        ("data={'folder': 'HZ'", "Write {'folder': 'PATH'}, or"),
        ("data=5", "'data' is 5. Expected a mapping or None"),
        ("data={'folder': ''}", "Expected a file or a folder"),
        ("data={'folder': 5}", "Expected a file or a folder"),
        ("data={'folder': 'a\\0'}", "Expected a file or a folder"),
        ("data={'foldr': 'x'}", "Did you mean folder?"),
        ("targets=(5,)", "'targets' is (5,). Expected a tuple of strings or mappings"),
        ("comparisons={'x': 5}", "Expected a mapping of strings to mappings"),
        (
            "comparisons={'x': {'sigm': 5}}",
            "config.comparisons['x']: config.method: Unknown key 'sigm'. Did you mean",
        ),
        (
            "comparisons={'x': {'name': 'cli'}}",
            "config.comparisons['x']: config.method: Unknown method 'cli'. Did",
        ),
        (
            "method_for={'visa': {'sigma': 'a'}}",
            "config.method_for['visa']: Config key 'sigma' is 'a'",
        ),
        ("auxiliary_for={'visa': 5}", "Expected a mapping of strings to strings"),
        ("checkpoints={'vissa': 'x'}", "config.checkpoints names 'vissa'"),
        ("method.num_prompts=1000000000", "'num_prompts' is 1000000000. It must be between 1 and"),
        ("naming=plan", "Did you mean plain?"),
    ],
)
def test_rejects_bad_values(run_main, override, expected):
    code, said = run_main(f"--config.{override}")
    assert (code, said.count("\n")) == (2, 1)
    assert expected in said


def test_rejects_checkpoints_that_training_would_not_use(run_main):
    expected = "config.checkpoints.visa is given, but config.train is True"
    assert expected in run_main("--config.checkpoints.visa=x.npz", "--config.train=True")[1]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("5", "config.py (AttributeError: "),
        ("None", "config.py returns None. Return the config."),
        ("1 / 0", "config.py, line 3 (ZeroDivisionError: "),
        ("__import__('mine')", "add the module's folder to PYTHONPATH"),
        ("{'method': {'name': 'clip'}}", "The key 'backbone' is missing"),
        ("ConfigDict({'backbone': {'name': 'clip-nano'}})", "The key 'method' is missing"),
    ],
)
def test_rejects_incomplete_configs(run_main, returned, expected, tmp_path):
    text = f"from ml_collections import ConfigDict\ndef get_config(_=''):\n    return {returned}\n"
    (tmp_path / "config.py").write_text(text)
    code, said = run_main()
    assert (code, said.count("\n")) == (2, 1)
    assert expected in said
