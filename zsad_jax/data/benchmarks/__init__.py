"""Benchmarks from their official files: facts, layouts, and tensorflow-datasets builders without tensorflow.

A benchmark is a table in `facts.toml`, and a module with its name where no shared layout fits. This package is
light; its module `builders` registers all benchmarks with tensorflow-datasets.
"""

from zsad_jax.data.benchmarks.availability import (
    default_data_dir,
    how_to_prepare,
    is_prepared,
    names,
)

__all__ = ["default_data_dir", "how_to_prepare", "is_prepared", "names"]
