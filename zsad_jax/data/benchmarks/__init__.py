"""Benchmarks as tensorflow-datasets builders, without tensorflow.

Importing this package registers them: `tfds.data_source("mvtec_ad", split="test")` then works. A new
benchmark is one module here with one subclass of `Benchmark`.
"""

import importlib
import pkgutil
from collections.abc import Iterator

from zsad_jax.data.benchmarks import prepared
from zsad_jax.data.benchmarks.base import Benchmark, default_data_dir
from zsad_jax.data.benchmarks.counts import compare_counts
from zsad_jax.data.benchmarks.prepared import open_builder
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.protocols import DATASETS, Naming
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError

__all__ = [
    "Benchmark",
    "compare_counts",
    "default_data_dir",
    "find_benchmark",
    "how_to_prepare",
    "is_prepared",
    "names",
    "open_builder",
    "open_prepared",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def names() -> list[str]:
    """The keys of all benchmarks."""
    return sorted(benchmark.name for benchmark in _benchmarks())


def find_benchmark(name: str) -> type[Benchmark]:
    """The builder of a benchmark.

    Raises:
      UserError: unknown name.
    """
    for benchmark in _benchmarks():
        if benchmark.name == name:
            return benchmark
    raise UserError(f"{name!r} is not a dataset; known are {', '.join(names())}.")


def is_prepared(name: str, data_dir: files.PathLike) -> bool:
    """Whether a benchmark has been written completely."""
    return prepared.is_prepared(find_benchmark(name), data_dir)


def open_prepared(
    name: str, data_dir: files.PathLike, split: str = "test", *, naming: Naming = "published"
) -> Dataset:
    """Opens a prepared benchmark; `naming` says what categories are called in prompts.

    Raises:
      UserError: it is not prepared; the message says what to do.
    """
    if not is_prepared(name, data_dir):
        raise UserError(f"{how_to_prepare(name, data_dir)}.")
    return prepared.PreparedDataset(find_benchmark(name), data_dir, split, naming=naming)


def how_to_prepare(name: str, data_dir: files.PathLike) -> str:
    """What to do to get a benchmark, with the exact command."""
    return find_benchmark(name).how_to_prepare(data_dir)


def _benchmarks(*bases: type[Benchmark]) -> Iterator[type[Benchmark]]:
    """All benchmarks; a class between them and `Benchmark` is a layout that several share."""
    for base in bases or (Benchmark,):
        for below in base.__subclasses__():
            if below.name in DATASETS:
                yield below
            yield from _benchmarks(below)
