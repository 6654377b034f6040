"""The common parts of all configs: the setting of the papers, the demo, and protocols."""

import dataclasses
import pathlib
import runpy
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from zsad_jax.backbones.feature_cache import FeaturesConfig
from zsad_jax.backbones.load import option_names
from zsad_jax.data.protocols import PROTOCOLS, PaperProtocol
from zsad_jax.methods import config_class
from zsad_jax.train import TrainingConfig
from zsad_jax.utils.config import plain
from zsad_jax.utils.errors import UserError, suggest

DEMO = PaperProtocol("synthetic_aux", {}, ("synthetic_target",))
# The sentences that the demo backbones were trained with, and those of the papers' baseline.
COMPARISONS = {
    "fixed prompts": {"name": "tipsomaly", "learning": "none"},
    "CLIP's sentences": {"name": "clip"},
}


def paper(method: str, *, train: bool = True) -> ConfigDict:
    """Returns the setting of the papers: MVTec AD and VisA, each with training on the other one's test split.

    Args:
      method: its name; the config has all fields of the method's config, with their defaults.
      train: False: learned parameters are those of `config.checkpoints`.

    Example:
      >>> config = paper("tipsomaly", train=False)
      >>> config.method.sigma = 8.0
    """
    recipe = config_class(method).recipe
    config = ConfigDict()
    config.method = _fields(config_class(method), name=method)
    config.backbone = _backbone({**recipe.backbone, "dtype": "float32"})
    config.checkpoints = ConfigDict()
    _follow(config, PROTOCOLS["common"])
    config.data = config_dict.placeholder(object)
    config.naming = recipe.naming
    config.method_for = ConfigDict(dict(recipe.method_for))
    config.train = train
    config.training = _fields(TrainingConfig, **recipe.training)
    config.trained_on = ConfigDict(plain(recipe.trained_on))
    config.comparisons = config_dict.placeholder(object)
    config.sweep = config_dict.placeholder(object)
    config.image_score = recipe.image_score or config_dict.placeholder(str)
    config.batch_size = 8
    config.exact_metrics = False
    config.skip_missing = False
    config.data_dir = config_dict.placeholder(str)
    config.num_workers = config_dict.placeholder(int)
    config.model_devices = 1
    config.features = _fields(FeaturesConfig)
    config.seed = recipe.seed
    config.shots = config_dict.placeholder(int)
    config.seeds = 1
    config.distributed = False
    return config


def demo(
    config: ConfigDict,
    *,
    backbone: str = "clip-nano",
    method: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    train: bool = True,
) -> None:
    """Makes a config the demo over a demo backbone, on synthetic images.

    Args:
      config: of `paper`; changed in place.
      backbone: "clip-nano" or "tips-nano".
      method: fields of the method that differ.
      training: fields of `TrainingConfig` that differ.
      train: False for methods that learn nothing.

    Example:
      >>> config = paper("anomalyclip")
      >>> demo(config)
      >>> config.backbone.name
      'clip-nano'
    """
    config.backbone = _backbone({"name": backbone, "image_size": 252, "dtype": "float32"})
    config.checkpoints = ConfigDict()
    _follow(config, DEMO)
    config.method_for, config.trained_on = ConfigDict(), ConfigDict()
    config.train = train
    config.method.update(method or {})
    # Few and easy images: larger steps, other passes, and mixed batches.
    config.training.update(
        {"epochs": 5, "batch_size": 16, "learning_rate": 5e-3, "shuffle": True, **(training or {})}
    )
    config.comparisons = {
        label: dict(fields)
        for label, fields in COMPARISONS.items()
        if fields != {"name": config.method.name}
    }
    config.batch_size = 16


def protocol(config_file: str, variant: str, names: Mapping[str, str]) -> ConfigDict:
    """Returns a method's config on all datasets of a paper; those that are not prepared are skipped.

    Variant "nano" is over the demo backbone of the method's demo, with included prompts: nothing is
    downloaded or trained.

    Args:
      config_file: `configs/protocols/<method>.py`; the method's own config is one folder up.
      variant: a key of `names`.
      names: variant -> key of `PROTOCOLS`; "" is the main one. "nano" is for methods with included prompts.
    """
    path = pathlib.Path(config_file)
    # By path, since a copied config is not part of any package.
    get_config = runpy.run_path(str(path.parents[1] / path.name))["get_config"]
    rules = PROTOCOLS[names.get(variant, names[""])]
    config = get_config("demo" if variant == "nano" else "")
    config.skip_missing = True
    if variant == "nano":
        # The demo drops these entries, which concern the papers' datasets.
        config.method_for = get_config().method_for
        config.comparisons = config_dict.placeholder(object)
        config.train = False
        config.targets = rules.targets
    else:
        _follow(config, rules)
    return vary(config, variant, {name: lambda _: None for name in names if name})


def ablation(
    config_file: str,
    variant: str,
    *,
    comparisons: Mapping[str, Mapping[str, Any]] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    rules: str = "common",
) -> ConfigDict:
    """Returns a method's config with an ablation of its paper; datasets that are not prepared are skipped.

    Variant "demo" is the method's demo, with three seeds and few epochs, also of compared configs.

    Args:
      config_file: `configs/ablations/<method>_<item>.py`; the method's own config is one folder up.
      variant: "" or "demo".
      comparisons, sweep: the keys of the config.
      rules: key of `PROTOCOLS`, the datasets of the paper's table.
    """
    path, demonstration = pathlib.Path(config_file), variant == "demo"
    own = path.parents[1] / f"{path.stem.partition('_')[0]}.py"
    config = runpy.run_path(str(own))["get_config"]("demo" if demonstration else "")
    config.skip_missing = True
    config.comparisons, config.sweep = comparisons, sweep
    if demonstration:
        config.seeds = 3
        config.training.epochs = 2
        same = {"training": {"epochs": config.training.epochs}}
        config.comparisons = comparisons and {
            label: {**row, "config": f"{row['config']}:demo", **same} if "config" in row else row
            for label, row in comparisons.items()
        }
    else:
        config.seeds = 1  # as in the papers, whose tables have no deviations
        _follow(config, PROTOCOLS[rules])
    return vary(config, variant, {"demo": lambda _: None})


def _follow(config: ConfigDict, rules: PaperProtocol) -> None:
    """Sets a protocol's targets and auxiliary datasets, and keys for the command line to name checkpoints."""
    config.targets = rules.targets
    config.auxiliary = rules.auxiliary
    config.auxiliary_for = ConfigDict(dict(rules.auxiliary_for))
    # ml_collections lets a command line set only the keys that a config has.
    for name in (rules.auxiliary, *rules.auxiliary_for.values()):
        if name not in config.checkpoints:
            config.checkpoints[name] = config_dict.placeholder(str)


def vary(
    config: ConfigDict, variant: str, variants: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Returns the config of a variant: "" leaves it as it is.

    Raises:
      UserError: unknown variant; the message names the known ones.

    Example:
      >>> vary(paper("clip"), "demo", {"demo": demo}).backbone.name
      'clip-nano'
    """
    if variant and variant not in variants:
        raise UserError(f"Unknown variant {variant!r}. {suggest(variant, variants)}")
    if variant:
        variants[variant](config)
    return config


def _fields(cls: Any, **values: Any) -> ConfigDict:
    """Returns all fields of a config's dataclass, with their defaults or these values."""
    hints, defaults = typing.get_type_hints(cls), cls()
    fields = ConfigDict()
    for field in dataclasses.fields(cls):
        value = values.pop(field.name, getattr(defaults, field.name))
        # A reference of any type, so that None can be set, and be replaced, in a command line.
        optional = type(None) in typing.get_args(hints[field.name])
        fields[field.name] = config_dict.FieldReference(value, object) if optional else value
    fields.update(values)
    return fields


def _backbone(options: Mapping[str, Any]) -> ConfigDict:
    """Returns a backbone's options, and keys for those that are not given."""
    config = ConfigDict(dict(options))
    for name in option_names():
        if name not in config:
            config[name] = config_dict.placeholder(object)
    return config
