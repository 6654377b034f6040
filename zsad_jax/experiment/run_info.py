"""Times, memory, versions and settings of a run, which are stored apart from its results."""

import dataclasses
import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from zsad_jax.backbones import Backbone
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.evaluate import Evaluation
from zsad_jax.experiment.config import Experiment, compare_with_recipe
from zsad_jax.methods import Method, count_learned
from zsad_jax.report.compare import UNLIKE_PAPER, WITHOUT_MASK
from zsad_jax.utils.memory import peak_memory

PACKAGES = ("zsad-jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow", "grain")


class Stopwatch:
    """Seconds of each part of a run, by name."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a part."""
        now = time.monotonic()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start


def describe_process(clock: Stopwatch) -> dict[str, Any]:
    """Returns the entries of run.json on the command, the machine, time, memory and versions."""
    return {
        "command": sys.argv,
        "devices": [str(device) for device in jax.devices()],
        "total_seconds": round(clock.total, 2),
        "parts_seconds": {name: round(seconds, 2) for name, seconds in clock.laps.items()},
        "peak_memory_bytes": peak_memory(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def describe_evaluations(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Returns the entries of run.json on the images and, of those scored in this run, on waiting devices."""
    without_mask = count_without_mask(evaluations)
    shares = ((one.dataset, one.device_wait_share) for one in evaluations)
    waited = {name: round(share, 4) for name, share in shares if share is not None}
    return {
        "num_images": sum(len(evaluation.labels) for evaluation in evaluations),
        "num_unreadable": sum(evaluation.num_unreadable for evaluation in evaluations),
        **({"device_wait_share": waited} if waited else {}),
        **({WITHOUT_MASK: without_mask} if without_mask else {}),
    }


def count_without_mask(evaluations: Iterable[Evaluation]) -> dict[str, int]:
    """Counts the anomalous images without the mask that pixel metrics need, by benchmark; no zeros."""
    counts: dict[str, int] = {}
    for evaluation in evaluations:
        facts = DATASETS.get(evaluation.dataset)
        found = sum(
            note.num_without_mask
            for by_score in evaluation.scored.metrics.values()
            # Masks do not depend on the image score: one score is enough.
            for note in next(iter(by_score.values())).notes
        )
        if found and facts and "pixel" in facts.levels:
            counts[evaluation.dataset] = found
    return counts


def describe_method(experiment: Experiment, method: Method, backbone: Backbone) -> dict[str, Any]:
    """Returns the entries of run.json on the model: changed options, and parameters counted two ways."""
    learned = count_learned(method, backbone)
    return {
        "method": method.name,
        "backbone_sha256": backbone.digest,
        "demonstration": backbone.demonstration,
        "changed_options": changed_options(method),
        UNLIKE_PAPER: compare_with_recipe(experiment),
        "trainable_parameters": learned,
        "trainable_parameters_as_published": learned + method.unused_parameters,
    }


def changed_options(method: Method) -> dict[str, Any]:
    """Returns the fields of the method's config that differ from its defaults."""
    return {
        field.name: getattr(method.config, field.name)
        for field in dataclasses.fields(method.config)
        if getattr(method.config, field.name) != field.default
    }
