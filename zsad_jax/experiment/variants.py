"""The settings of a run: the main one, comparisons, and points of a sweep, each a whole experiment."""

import dataclasses
import itertools
import runpy
from collections.abc import Mapping
from typing import Any, NamedTuple

from zsad_jax.experiment.config import Experiment, from_config
from zsad_jax.experiment.config_files import find_config
from zsad_jax.report.wording import describe_value, short_keys
from zsad_jax.utils.errors import UserError, did_you_mean, located, nearest, suggest

# What a setting consists of; all else is the same in a whole run.
SECTIONS = (
    *("method", "backbone", "training", "checkpoints", "train", "seed"),
    *("method_for", "auxiliary", "auxiliary_for"),
)
# What a config that is compared as a whole brings along: datasets are those of the run.
_OF_CONFIG = SECTIONS[: SECTIONS.index("auxiliary")]


class Variant(NamedTuple):
    """A setting of a run.

    Attributes:
      label: its key in `comparisons`, a combination of the sweep ("sigma=4"), or "" for the main setting.
      experiment: the setting as an experiment without comparisons and sweep.
      point: the values of the sweep, by key.
    """

    label: str
    experiment: Experiment
    point: Mapping[str, Any] = {}


def make_variants(experiment: Experiment) -> tuple[Variant, ...]:
    """Returns the settings of an experiment, the main one first.

    Raises:
      UserError: a comparison or a key of the sweep has an unknown key or a bad value.

    Example:
      >>> setting = {"name": "tipsomaly"}
      >>> made = make_variants(
      ...     Experiment(
      ...         method=setting,
      ...         backbone={"name": "tips-nano"},
      ...         targets=("synthetic_target",),
      ...         comparisons={"unsmoothed": {"sigma": 0.0}},
      ...         sweep={"method.sigma": (4.0, 8.0)},
      ...     )
      ... )
      >>> [one.label for one in made]
      ['', 'unsmoothed', 'sigma=4', 'sigma=8']
    """
    main = dataclasses.replace(experiment, comparisons={}, sweep={})
    variants = [Variant("", main)]
    for label, fields in experiment.comparisons.items():
        with located(f"config.comparisons[{label!r}]"):
            variants.append(Variant(label, _compare(main, fields)))
    for key, values in experiment.sweep.items():
        if key.partition(".")[0] not in SECTIONS:
            known = [name for name in SECTIONS if name != "train"]
            raise UserError(f"config.sweep names {key!r}. {suggest(key, known)}")
        if not values:
            raise UserError(f"config.sweep[{key!r}] has no values. Name at least one.")
    combinations = itertools.product(*experiment.sweep.values()) if experiment.sweep else ()
    for values in combinations:
        point = dict(zip(experiment.sweep, values, strict=True))
        short = short_keys({"": point})
        label = ", ".join(f"{short[key]}={describe_value(one)}" for key, one in point.items())
        changed = main
        with located(f"config.sweep ({label})"):
            for key, value in point.items():
                changed = _set(changed, *key.split("."), value=value)
        variants.append(Variant(label, changed, point))
    labels = [one.label for one in variants]
    if len(set(labels)) < len(labels):
        twice = max(labels, key=labels.count)
        raise UserError(f"config.comparisons and config.sweep contain {twice!r} twice. Rename one.")
    return tuple(variants)


def _compare(main: Experiment, fields: Mapping[str, Any]) -> Experiment:
    """Returns the main setting with what a comparison changes."""
    sections = {name: fields[name] for name in SECTIONS if name in fields}
    options = {key: value for key, value in fields.items() if key not in (*SECTIONS, "config")}
    for key in options:
        if near := nearest(key, SECTIONS, cutoffs=(0.8,)):
            raise UserError(f"Unknown key {key!r}. {did_you_mean(near)}")
    if "config" in fields:
        path, _, variant = find_config(fields["config"]).partition(":")
        other = from_config(runpy.run_path(path)["get_config"](variant))
        main = dataclasses.replace(main, **{name: getattr(other, name) for name in _OF_CONFIG})
    if options:
        sections["method"] = {**sections.get("method", {}), **options}
    for name, value in sections.items():
        main = _set(main, name, value=value)
    return main


def _set(main: Experiment, *keys: str, value: Any) -> Experiment:
    """Returns an experiment with another value of a key, or of a section, into which a mapping is merged."""
    section, *rest = keys
    for key in reversed(rest):
        value = {key: value}
    before = getattr(main, section)
    changes = {section: value}
    if isinstance(before, Mapping) and isinstance(value, Mapping):
        # Another method, or backbone, has its own options alone.
        another = value.get("name", before.get("name")) != before.get("name")
        changes = {section: value if another else _merge(before, value)}
        if another and section == "method":
            changes |= {"method_for": {}, "image_score": None}
    return dataclasses.replace(main, **changes)


def _merge(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(before.get(key), Mapping)
        merged[key] = _merge(before[key], value) if nested else value
    return merged
