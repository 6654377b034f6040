"""Tests of every config and variant, and of command-line overrides."""

import pathlib
import runpy
import subprocess
import sys
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from zsad_jax.backbones.load import FAMILY_OPTIONS, load_backbone, option_names
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.protocols import DOMAIN_MEANS, parse_name
from zsad_jax.experiment import presets
from zsad_jax.experiment.config import Experiment, compare_with_recipe, from_config
from zsad_jax.experiment.variants import make_variants
from zsad_jax.methods import METHODS, config_class
from zsad_jax.report.published import all_numbers, is_main, published_numbers
from zsad_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
PAPERS = ("faprompt", "tipsomaly", "tps", "vip2clip")
PROTOCOL_CONFIGS = sorted((ROOT / "configs/protocols").glob("*.py"))
ABLATIONS = sorted((ROOT / "configs/ablations").glob("*.py"))
ALL = [*CONFIGS, *PROTOCOL_CONFIGS, *ABLATIONS]


def parse(config, *overrides):
    """Returns the experiment of a command line."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    line = ["main", f"--config={ROOT / 'configs' / config}", *overrides]
    with mock.patch.object(sys, "argv", line):  # overrides are read from here
        values(line)
    return from_config(holder.value)


def variants(paths):
    for path in paths:
        file = path.relative_to(ROOT / "configs").as_posix()
        for variant in runpy.run_path(str(path))["VARIANTS"]:
            yield f"{file}{':' * bool(variant)}{variant}"


def test_each_method_has_a_config():
    assert {path.stem for path in CONFIGS} == set(METHODS)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_each_variant_is_described(path, monkeypatch):
    known = []

    def vary(config, variant, variants):
        known.append({"", *variants})
        return config

    monkeypatch.setattr(presets, "vary", vary)
    module = runpy.run_path(str(path))
    module["get_config"]()
    assert set(module["VARIANTS"]) == known[-1]


@pytest.mark.parametrize("config", variants(CONFIGS))
def test_each_variant_is_a_valid_experiment(config):
    experiment = parse(config)
    assert experiment.method["name"] == config.partition(".")[0]
    demonstration = ":demo" in config
    assert ("nano" in experiment.backbone["name"]) == demonstration


@pytest.mark.parametrize("config", variants(ALL))
def test_configs_use_published_settings(config):
    """Excludes configs over the included backbones, whose results name another backbone."""
    if "demo" not in config and "nano" not in config:
        assert compare_with_recipe(parse(config)) == {}
    else:
        assert "nano" in parse(config).backbone["name"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=1", {"epochs": [1, 10]}),
        ("training.optimizer=sgd", {"optimizer": ["sgd", "adam"]}),
        (
            "training.learning_rates.fgp=0.1",
            {"learning_rates": [{"fgp": 0.1, "prompts": 1e-3}, {"fgp": 1e-5, "prompts": 1e-3}]},
        ),
        ("backbone.activation=gelu", {"activation": ["gelu", None]}),
        ("naming=plain", {"naming": ["plain", "published"]}),
        ("batch_size=2", {}),
        ("backbone.dtype=bfloat16", {}),
    ],
)
def test_finds_options_that_differ_from_published_settings(override, expected):
    assert compare_with_recipe(parse("vip2clip.py", f"--config.{override}")) == expected


def test_naming_is_compared_with_that_of_the_method():
    expected = {"naming": ["published", "aaclip"]}
    assert compare_with_recipe(parse("aaclip.py", "--config.naming=published")) == expected


def test_training_options_are_ignored_without_training():
    assert compare_with_recipe(parse("tipsomaly.py", "--config.training.epochs=9")) == {}
    trained = parse("tipsomaly.py", "--config.training.epochs=9", "--config.train=True")
    assert compare_with_recipe(trained) == {"epochs": [9, 2]}


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
def test_command_line_overrides(override, read):
    override = override.replace("CONFIG", str(CONFIGS[0]))  # any existing file
    train = "--config.train=False"
    assert read(parse("anomalyclip.py", f"--config.{override}", train))


def test_each_method_in_the_papers_tables_has_a_protocol():
    printed = {number.method for number in all_numbers()}
    assert {path.stem for path in PROTOCOL_CONFIGS} == printed & set(METHODS)


@pytest.mark.parametrize("path", PROTOCOL_CONFIGS, ids=lambda path: path.stem)
def test_protocols_cover_all_printed_datasets(path):
    """Excludes means, datasets that the printed method is trained on, and variants of their own."""
    numbers = [one for one in all_numbers() if one.method == path.stem and is_main(one)]
    assert {one.dataset for one in numbers} - {*DOMAIN_MEANS} <= {
        *parse(f"protocols/{path.name}").targets
    }


@pytest.mark.parametrize("config", variants(PROTOCOL_CONFIGS))
def test_protocols_do_not_train_on_their_targets(config):
    experiment = parse(config)
    assert experiment.method["name"] in config
    assert experiment.skip_missing
    assert all(target in DATASETS for target in experiment.targets)
    nano = config.endswith(":nano")
    assert (experiment.auxiliaries() == ("synthetic_aux",)) == nano
    assert ("nano" in experiment.backbone["name"]) == nano
    assert experiment.train == (not nano and parse(f"{experiment.method['name']}.py").train)
    for target in experiment.resolved:
        trained_on = {part.key for part in parse_name(target.auxiliary)}
        assert trained_on <= set(DATASETS) - {target.name}


@pytest.mark.parametrize("paper", PAPERS)
def test_protocol_targets_match_the_papers_tables(paper):
    """Compares with the datasets of the main tables, excluding means and special rows."""
    experiment = parse(f"protocols/{paper}.py")
    numbers = {name: published_numbers(paper, name).values() for name in DATASETS}
    printed = {name for name, found in numbers.items() if any(one.paper == paper for one in found)}
    assert set(experiment.targets) == printed


def test_checkpoint_of_joined_auxiliary_can_be_set():
    name = "mvtec_ad:train+mvtec_ad:test"
    override = f"--config.checkpoints['{name}']={CONFIGS[0]}"
    experiment = parse("protocols/faprompt.py:full", override, "--config.train=False")
    assert experiment.checkpoints == {name: str(CONFIGS[0])}


def test_folder_replaces_targets():
    experiment = parse("anomalyclip.py", "--config.data={'folder': 'my_parts'}")
    assert experiment.targets == ({"folder": "my_parts"},)


@pytest.mark.parametrize("field", ["method_for", "auxiliary_for"])
def test_suggests_target_for_misspelled_name(field):
    options = {"method": {"name": "coop"}, "backbone": {"name": "clip-nano"}, "targets": ("visa",)}
    value = {"vissa": {} if field == "method_for" else "mvtec_ad"}
    with pytest.raises(UserError, match=rf"config\.{field} names 'vissa'.*Did you mean visa"):
        Experiment(**options, **{field: value})


@pytest.mark.parametrize("auxiliary", ["visa", "visa:train", "mvtec_ad+visa:train"])
def test_does_not_train_on_target_split(auxiliary):
    options = {"method": {"name": "coop"}, "backbone": {"name": "clip-nano"}}
    with pytest.raises(UserError, match="visa would be evaluated with prompts trained on"):
        Experiment(**options, targets=("visa",), auxiliary=auxiliary)


@pytest.mark.parametrize(
    ("name", "size", "valid"),
    [
        ("clip-vit-b16", 518, "512 or 528"),
        ("clip-vit-b32", 518, "512 or 544"),
        ("tips-l14-hr", 512, "504 or 518"),
    ],
)
def test_rejects_image_size_that_patches_do_not_divide(name, size, valid):
    overrides = [
        f"--config.backbone.{key}={value}" for key, value in (("name", name), ("image_size", size))
    ]
    with pytest.raises(
        UserError, match=rf"image_size={size} is not a multiple of .* {name}. Use {valid}\."
    ):
        parse("anomalyclip.py", *overrides)
    overrides[1] = f"--config.backbone.image_size={valid.split()[0]}"
    assert parse("anomalyclip.py", *overrides).backbone["name"] == name


def test_unset_options_have_defaults():
    experiment = parse("anomalyclip.py")
    assert experiment.checkpoints == {}
    assert experiment.training_config.b1 == 0.5


def test_rejects_unknown_variant():
    with pytest.raises(
        UserError, match=r"^Unknown variant 'demo_clip'\. Did you mean demo_tips or demo\?"
    ):
        parse("coop.py:demo_clip")


def test_accepts_other_methods_as_comparisons():
    options = {"method": {"name": "coop", "sigma": 2.0}, "backbone": {"name": "clip-nano"}}
    comparisons = {"plain": {"name": "clip"}, "middle": {"position": "middle"}}
    made = make_variants(Experiment(**options, targets=("visa",), comparisons=comparisons))
    _, plain, middle = (one.experiment.method_on("visa") for one in made)
    assert plain == config_class("clip")()
    assert (middle.sigma, middle.position) == (2.0, "middle")
    wrong = {"plain": {"name": "clip", "position": "end"}}
    experiment = Experiment(**options, targets=("visa",), comparisons=wrong)
    with pytest.raises(UserError, match=r"comparisons\['plain'\].*Unknown key 'position'"):
        make_variants(experiment)


def test_rejects_training_of_methods_without_parameters(tmp_path):
    command = [sys.executable, "-m", "zsad_jax.main", "--config", ROOT / "configs/clip.py:demo"]
    done = subprocess.run(
        [*command, "--config.train=True", f"--workdir={tmp_path / 'run'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "config.train is True, but clip as configured learns nothing" in done.stderr


def test_every_backbone_option_is_a_key():
    override = "--config.backbone.text_ln_eps=1e-5"
    options = parse("tipsomaly.py:demo", override).backbone
    assert options["text_ln_eps"] == 1e-5
    assert options.keys() == {"name", *option_names()}
    accepted = {"lineage": "native", "gelu_approximate": True, "text_ln_eps": 1e-5}
    assert {*accepted, "posemb_stage", "position_rule"} == {*FAMILY_OPTIONS}
    load_backbone("tips-nano", **accepted, posemb_stage=None)
