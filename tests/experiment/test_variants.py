"""Tests of comparisons and sweeps as whole settings."""

import pytest

from zsad_jax.experiment.config import Experiment
from zsad_jax.experiment.variants import drop_foreign_options, make_variants
from zsad_jax.utils.errors import UserError

MAIN = {
    "method": {"name": "tipsomaly", "sigma": 2.0},
    "backbone": {"name": "tips-nano", "image_size": 56},
    "targets": ("synthetic_target",),
    "auxiliary": "synthetic_aux",
    "train": True,
    "training": {"epochs": 4, "learning_rates": {"prompts": 1e-2}},
    "seed": 3,
}


def made(**fields):
    return {one.label: one for one in make_variants(Experiment(**MAIN | fields))}


def test_comparison_changes_fields_of_the_method():
    one = made(comparisons={"unsmoothed": {"sigma": 0.0}})["unsmoothed"].experiment
    assert one.method == {"name": "tipsomaly", "sigma": 0.0}
    assert (one.training, one.seed, one.comparisons, one.sweep) == (MAIN["training"], 3, {}, {})


def test_comparison_with_another_method_has_its_own_fields_alone():
    found = made(
        comparisons={"CLIP": {"name": "clip"}},
        method_for={"synthetic_target": {"sigma": 9.0}},
        image_score="second",
    )
    assert found["CLIP"].experiment.method == {"name": "clip"}
    assert found["CLIP"].experiment.method_on("synthetic_target").sigma != 9.0
    assert found["CLIP"].experiment.image_score is None
    assert found[""].experiment.method_on("synthetic_target").sigma == 9.0


def test_comparison_has_sections_of_its_own():
    changes = {
        "training": {"epochs": 9, "learning_rates": {"other": 0.1}},
        "backbone": {"image_size": 28},
        "seed": 8,
        "train": False,
        "sigma": 5.0,
    }
    one = made(comparisons={"other": changes})["other"].experiment
    assert one.training_config.epochs == 9
    assert one.training_config.learning_rates == {"prompts": 1e-2, "other": 0.1}
    assert one.backbone == {"name": "tips-nano", "image_size": 28}
    assert (one.seed, one.train, one.method["sigma"]) == (8, False, 5.0)


def test_another_backbone_replaces_the_options_of_the_main_one():
    one = made(comparisons={"CLIP": {"backbone": {"name": "clip-nano"}}})["CLIP"].experiment
    assert one.backbone == {"name": "clip-nano", "image_size": 56}
    assert one.method == MAIN["method"]


def test_comparison_takes_another_config_as_a_whole():
    base = {"config": "configs/anomalyclip.py:demo", "training": {"epochs": 1}}
    one = made(comparisons={"Base": base})["Base"].experiment
    assert (one.method["name"], one.backbone["name"]) == ("anomalyclip", "clip-nano")
    assert (one.training_config.epochs, one.training_config.learning_rate) == (1, 1e-3)
    assert one.seed == 111
    assert one.targets == MAIN["targets"]


def test_sweep_combines_all_values():
    found = made(sweep={"method.sigma": [4.0, 8.0], "training.learning_rates.prompts": [1e-3]})
    assert list(found) == ["", "sigma=4, prompts=0.001", "sigma=8, prompts=0.001"]
    last = found["sigma=8, prompts=0.001"]
    assert last.point == {"method.sigma": 8.0, "training.learning_rates.prompts": 1e-3}
    assert last.experiment.method["sigma"] == 8.0
    assert last.experiment.training_config.learning_rates == {"prompts": 1e-3}
    assert last.experiment.training_config.epochs == 4


def test_sweep_over_a_section_is_named_by_its_name():
    found = made(sweep={"backbone": [{"image_size": 28}, {"name": "clip-nano"}]})
    assert list(found) == ["", "backbone={'image_size': 28}", "backbone=clip-nano"]
    other = found["backbone=clip-nano"].experiment.backbone
    assert other == {"name": "clip-nano", "image_size": 56}


def test_keys_with_the_same_end_are_named_in_full():
    found = made(sweep={"method.name": ["clip"], "backbone.name": ["clip-nano"]})
    assert list(found) == ["", "method.name=clip, backbone.name=clip-nano"]


def test_comparison_takes_precedence_over_fields_of_a_target():
    fields = {"synthetic_target": {"sigma": 9.0, "temperature": 0.5}}
    found = made(
        method_for=fields, comparisons={"a": {"sigma": 1.0}}, sweep={"method.sigma": [5.0]}
    )
    specs = {name: one.experiment.method_on("synthetic_target") for name, one in found.items()}
    assert {name: one.sigma for name, one in specs.items()} == {"": 9, "a": 1, "sigma=5": 5}
    assert {one.temperature for one in specs.values()} == {0.5}


def test_order_of_swept_keys_has_no_effect():
    values = {"method.sigma": [5.0], "method.name": ["clip"], "backbone": [{"name": "clip-nano"}]}
    first, second = (made(sweep=dict(order)) for order in (values.items(), [*values.items()][::-1]))
    (one,), (other,) = ([*found.values()][1:] for found in (first, second))
    assert one.experiment == other.experiment
    assert one.experiment.method == {"name": "clip", "sigma": 5.0}


def test_seeds_are_for_any_trained_setting():
    assert made(seeds=3, train=False, comparisons={"learned": {"train": True}})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"comparisons": {"a": {"sigm": 1.0}}}, r"config.comparisons\['a'\].*'sigm'.*sigma"),
        ({"comparisons": {"a": {"trainin": {}}}}, r"'trainin'.*Did you mean training"),
        ({"comparisons": {"a": {"config": "configs/tip.py"}}}, r"config.comparisons\['a'\].*tip"),
        (
            {"comparisons": {"a": {"training": {"epoch": 1}}}},
            r"comparisons\['a'\].*'epoch'.*epochs",
        ),
        ({"sweep": {"methd.sigma": [1.0]}}, r"'methd.sigma'.*method"),
        ({"sweep": {"method.sigm": [1.0]}}, r"config.sweep \(sigm=1\).*'sigm'.*sigma"),
        ({"sweep": {"method.sigma": []}}, r"config.sweep\['method.sigma'\] has no values"),
        ({"sweep": {"method.sigma": 4.0}}, "'sweep' is .* Expected a mapping"),
        ({"sweep": {"seed": [1, 1]}}, "'seed=1' twice. Remove one"),
        ({"comparisons": {"a": {"config": 5}}}, r"config.comparisons\['a'\].*5.*Expected"),
        (
            {"comparisons": {"a": {"method": "clip", "sigma": 3.0}}},
            "'method' is 'clip'. Expected a",
        ),
        ({"sweep": {"training.epochs": [1]}, "train": False}, "'training.epochs', but nothing is"),
        ({"seeds": 3, "train": False}, "config.seeds is 3, but nothing is trained"),
    ],
)
def test_rejects_mistakes(fields, expected):
    with pytest.raises(UserError, match=expected):
        made(**fields)


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        ("siglip2-b16-384", {}, {"dtype": "float32"}),
        ("clip-vit-l14-336", {}, {"dtype": "float32", "image_size": 518}),
        ("siglip2-b16-384", {"lineage": "native"}, {"dtype": "float32", "lineage": "native"}),
        ("siglip2-b16-384", {"image_size": 400}, {"dtype": "float32", "image_size": 400}),
    ],
)
def test_another_family_drops_options_of_the_config_file(name, changed, expected):
    backbone = {"lineage": "pytorch", "image_size": 518, "dtype": "float32", **changed}
    checkpoints = {"visa": "tipsomaly-l14-hr-visa-epoch2", "btad": "prompts.npz"}
    config = {
        "backbone": {"name": name, **backbone},
        "checkpoints": checkpoints,
        "image_score": "second",
    }
    keys = {"backbone.name", *(f"backbone.{key}" for key in changed)}
    found = drop_foreign_options(config, "tips-l14-hr", keys)
    assert found == {
        "backbone": {"name": name, **expected},
        "checkpoints": {"btad": "prompts.npz"},
        "image_score": None,
    }
    found = drop_foreign_options(config, "tips-l14-hr", {*keys, "checkpoints.visa"})
    assert found["checkpoints"] == checkpoints
    found = drop_foreign_options(config, "tips-l14-hr", {*keys, "image_score"})
    assert found["image_score"] == "second"


def test_backbones_of_one_family_share_options():
    config = {"backbone": {"name": "tips-s14-hr", "lineage": "pytorch"}, "image_score": "second"}
    assert drop_foreign_options(config, "tips-l14-hr", {"backbone.name"}) == config
