"""The keys of a config: values by dotted name, with type and description."""

import contextlib
import textwrap
import typing
from typing import Any

from ml_collections import ConfigDict

from zsad_jax.backbones.feature_cache import FeaturesConfig
from zsad_jax.backbones.load import FAMILY_OPTIONS, load_backbone
from zsad_jax.experiment.config import Experiment
from zsad_jax.methods import config_class
from zsad_jax.train import TrainingConfig
from zsad_jax.utils.config import describe_type, documented
from zsad_jax.utils.errors import UserError


def flatten(config: Any, section: type = ConfigDict) -> dict[str, Any]:
    """Returns the values of a config by dotted name; a section without keys is the value {}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = flatten(value, section) if isinstance(value, section) else {"": value}
        found |= {f"{name}.{key}".rstrip("."): one for key, one in nested.items()} or {name: {}}
    return found


def describe_keys(config: ConfigDict) -> dict[str, tuple[str, str]]:
    """Returns the type and the description of each key and section of a config, by dotted name.

    The entries of a mapping have those of the mapping.
    """
    # The classes and functions that take a section, whose docstrings are the only descriptions.
    parts: dict[str, Any] = {"": Experiment, "training": TrainingConfig, "backbone": load_backbone}
    parts["features"] = FeaturesConfig
    with contextlib.suppress(AttributeError, UserError):  # reported when the experiment is made
        parts["method"] = config_class(config.method.name)
    keys = {
        f"backbone.{name}": (describe_type(hint), words)
        for name, (hint, words) in FAMILY_OPTIONS.items()
    }
    for section, taker in parts.items():
        hints = typing.get_type_hints(taker)
        for name, words in documented(taker).items():
            hint = hints.get(name)
            if typing.get_origin(hint) is typing.ClassVar:
                (hint,) = typing.get_args(hint)
            keys[f"{section}.{name}".lstrip(".")] = (describe_type(hint), words)
    for name in flatten(config):
        known = name
        while known and known not in keys:
            known = known.rpartition(".")[0]
        keys[name] = keys.get(known, ("", ""))
    return keys


def list_keys(config: ConfigDict) -> str:
    """Returns every key of a config with its value, type and description."""
    keys, values, lines = describe_keys(config), flatten(config), []
    # In the order of the docstrings, whose descriptions may continue those before them.
    order = {described: number for number, described in enumerate(keys.values())}
    for name in sorted(values, key=lambda name: order[keys[name]]):
        kind, words = keys[name]
        words = textwrap.fill(f"{kind[:1].upper()}{kind[1:]}: {words}", 96)
        lines += [f"--config.{name}={values[name]}", textwrap.indent(words, "    ")]
    return "\n".join(lines)
