"""What a run took and what it ran on: times, memory, versions. Kept apart from the results."""

import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import jax

from zsad_jax.data.protocols import DATASETS
from zsad_jax.evaluate import Evaluation
from zsad_jax.report import WITHOUT_MASK

PACKAGES = ("zsad-jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow", "grain")


class Weights(Protocol):
    """What is told of a backbone."""

    @property
    def digest(self) -> str:
        """SHA-256 over the weight files."""

    @property
    def demonstration(self) -> bool:
        """Whether outputs are not for decisions."""


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


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, but bytes on macOS


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


def count_without_mask(evaluations: Iterable[Evaluation]) -> dict[str, int]:
    """Counts the anomalous images without the mask that pixel metrics need, by benchmark; no zeros."""
    counts: dict[str, int] = {}
    for evaluation in evaluations:
        about = DATASETS.get(evaluation.dataset)
        found = sum(
            note.num_without_mask
            for by_score in evaluation.scored[0].metrics.values()
            for note in next(iter(by_score.values())).notes
        )
        if found and about and "pixel" in about.levels:
            counts[evaluation.dataset] = found
    return counts


def describe_run(
    backbone: Weights, clock: Stopwatch, evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """The contents of run.json."""
    without_mask = count_without_mask(evaluations)
    return {
        "command": sys.argv,
        "backbone_sha256": backbone.digest,
        "devices": [str(device) for device in jax.devices()],
        "total_seconds": round(clock.total, 2),
        "parts_seconds": {name: round(seconds, 2) for name, seconds in clock.laps.items()},
        "peak_memory_bytes": peak_memory(),
        "num_images": sum(len(evaluation.labels) for evaluation in evaluations),
        "num_unreadable": sum(evaluation.num_unreadable for evaluation in evaluations),
        "demonstration": backbone.demonstration,
        "versions": versions(),
        **({WITHOUT_MASK: without_mask} if without_mask else {}),
    }
