"""The settings of a run: the main one, comparisons, and points of a sweep, each a whole experiment."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from zsad_jax.backbones.registry import RELEASES
from zsad_jax.experiment.config import Experiment, from_config
from zsad_jax.experiment.config_files import load_config
from zsad_jax.methods.shared import prompt_files
from zsad_jax.report.wording import describe_value, short_keys
from zsad_jax.utils.config import merged
from zsad_jax.utils.errors import UserError, did_you_mean, located, nearest, suggest

# Sections in which the settings of a run may differ.
SECTIONS = (
    *("method", "backbone", "training", "checkpoints", "train", "seed", "shots"),
    *("method_for", "trained_on", "auxiliary", "auxiliary_for"),
)
# Sections taken from another config; its datasets are ignored.
_OF_CONFIG = SECTIONS[: SECTIONS.index("auxiliary")]
# Options of a backbone that another one keeps.
_OF_ANY = ("image_size", "dtype", "bit_depth", "resize")


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

    def describe(self) -> dict[str, Any]:
        """Returns the sections in which settings may differ."""
        return {name: getattr(self.experiment, name) for name in SECTIONS}


def drop_foreign_options(
    config: dict[str, Any], before: str | None, changed: Collection[str]
) -> dict[str, Any]:
    """Returns a config without options for the backbone `before`, if its backbone is of another family.

    Released prompts that were learned over another family are options of this kind, too. Options that all
    backbones have, an image size that the backbone can have, and `changed` dotted keys stay.
    """
    if "backbone.name" not in changed:
        return config
    name = config["backbone"]["name"]
    old, new = (RELEASES[one].family if one in RELEASES else one for one in (before, name))
    if old == new:
        return config
    patch = RELEASES[name].vision["patch_size"] if name in RELEASES else 1
    kept = {"name", *_OF_ANY}
    if (config["backbone"].get("image_size") or 0) % patch:
        kept.remove("image_size")
    kept |= {key.removeprefix("backbone.") for key in changed}
    backbone = {key: value for key, value in config["backbone"].items() if key in kept}
    score = config.get("image_score") if "image_score" in changed else None
    released = () if new == RELEASES[prompt_files.BACKBONE].family else prompt_files.RELEASES
    checkpoints = {
        key: source
        for key, source in config.get("checkpoints", {}).items()
        if source not in released or f"checkpoints.{key}" in changed
    }
    return {**config, "backbone": backbone, "checkpoints": checkpoints, "image_score": score}


def make_variants(experiment: Experiment) -> tuple[Variant, ...]:
    """Returns the settings of an experiment, the main one first.

    Raises:
      UserError: a comparison or a key of the sweep has an unknown key or a bad value.
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
        if key.startswith("training") and not (main.train or "train" in experiment.sweep):
            raise UserError(
                f"config.sweep names {key!r}, but nothing is trained. Remove it, or train"
                " (--config.train=True)."
            )
    combinations = itertools.product(*experiment.sweep.values()) if experiment.sweep else ()
    for values in combinations:
        point = dict(zip(experiment.sweep, values, strict=True))
        short = short_keys({"": point})
        label = ", ".join(f"{short[key]}={describe_value(one)}" for key, one in point.items())
        changed = main
        with located(f"config.sweep ({label})"):
            # A section, or another name in it, discards options that were set before.
            for key in sorted(point, key=_order):
                changed = _set(changed, *key.split("."), value=point[key])
        variants.append(Variant(label, changed, point))
    labels = [one.label for one in variants]
    if len(set(labels)) < len(labels):
        twice = max(labels, key=labels.count)
        raise UserError(f"config.comparisons and config.sweep contain {twice!r} twice. Remove one.")
    if experiment.seeds > 1 and not any(
        one.train or one.shots or one.method_on().draws
        for one in (variant.experiment for variant in variants)
    ):
        raise UserError(
            f"config.seeds is {experiment.seeds}, but nothing is trained and nothing is drawn, so"
            " that all seeds have the same results. Set it to 1, or train (--config.train=True)."
        )
    return tuple(variants)


def _compare(main: Experiment, fields: Mapping[str, Any]) -> Experiment:
    """Returns the main setting with what a comparison changes."""
    sections = {name: fields[name] for name in SECTIONS if name in fields}
    options = {key: value for key, value in fields.items() if key not in (*SECTIONS, "config")}
    for key in options:
        if near := nearest(key, SECTIONS, cutoffs=(0.8,)):
            raise UserError(f"Unknown key {key!r}. {did_you_mean(near)}")
    if "config" in fields:
        other = from_config(load_config(fields["config"]))
        main = dataclasses.replace(main, **{name: getattr(other, name) for name in _OF_CONFIG})
    method = sections.get("method", {})
    if options and isinstance(method, Mapping):  # anything else is rejected below
        sections["method"] = {**method, **options}
    for name in sorted(sections, key=_order):
        main = _set(main, name, value=sections[name])
    return main


def _order(key: str) -> tuple[bool, int, bool]:
    # Another method starts without references, and without settings of auxiliary datasets.
    return key in ("shots", "trained_on"), key.count("."), not key.endswith(".name")


def _set(main: Experiment, *keys: str, value: Any) -> Experiment:
    """Returns an experiment with another value of a key, or of a section, into which a mapping is merged."""
    section, *rest = keys
    for key in reversed(rest):
        value = {key: value}
    before = getattr(main, section)
    changes = {section: value}
    if isinstance(before, Mapping) and isinstance(value, Mapping):
        another = value.get("name", before.get("name")) != before.get("name")
        # Another method or backbone has its own options alone, apart from those that all backbones have.
        kept = {key: before[key] for key in _OF_ANY if section == "backbone" and key in before}
        changes = {section: {**kept, **value} if another else merged(before, value)}
        if section == "method":
            left = {name: _without(of, value) for name, of in main.method_for.items()}
            changes["method_for"] = {} if another else left
            changes["image_score"] = None if another else main.image_score
            changes["shots"] = None if another else main.shots
        if section in ("method", "training"):
            settings = {
                name: {k: _without(of, value) if k == section else of for k, of in own.items()}
                for name, own in main.trained_on.items()
            }
            changes["trained_on"] = {} if another else settings
    return dataclasses.replace(main, **changes)


def _without(fields: Mapping[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """Returns fields but those that are changed for all."""
    return {key: value for key, value in fields.items() if key not in changed}
