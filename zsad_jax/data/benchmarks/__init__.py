"""Benchmarks from their official files: facts, layouts, and tensorflow-datasets builders without tensorflow.

A benchmark is a table in `facts.toml`, and a module with its name where no shared layout fits. This package is
light; its module `builders` registers all benchmarks with tensorflow-datasets.
"""

from typing import TYPE_CHECKING

from zsad_jax.data.benchmarks.availability import (
    check_known,
    default_data_dir,
    how_to_prepare,
    is_prepared,
    names,
)
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError

if TYPE_CHECKING:
    from zsad_jax.data.benchmarks.builders import Benchmark
    from zsad_jax.data.dataset import Dataset
    from zsad_jax.data.protocols import Naming

__all__ = [
    "default_data_dir",
    "find_builder",
    "how_to_prepare",
    "is_prepared",
    "names",
    "open_prepared",
]


def find_builder(name: str) -> type["Benchmark"]:
    """Returns the builder of a benchmark.

    Raises:
      UserError: unknown name.
    """
    from zsad_jax.data.benchmarks.builders import BUILDERS

    check_known(name)
    return BUILDERS[name]


def open_prepared(
    name: str, data_dir: files.PathLike, split: str = "test", *, naming: "Naming" = "published"
) -> "Dataset":
    """Opens a prepared benchmark; `naming` selects what categories are called in prompts.

    Raises:
      UserError: it is not prepared; the message says what to do.
    """
    from zsad_jax.data.benchmarks.prepared import PreparedDataset

    if not is_prepared(name, data_dir):
        raise UserError(f"{how_to_prepare(name, data_dir)}.")
    return PreparedDataset(name, data_dir, split, naming=naming)
