"""Adds the folder configs/ to the package as zsad_jax.configs; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

folders = find_namespace_packages("configs", exclude=["*__pycache__"])
setup(
    packages=[
        *find_namespace_packages(include=["zsad_jax*"], exclude=["*__pycache__"]),
        "zsad_jax.configs",
        *(f"zsad_jax.configs.{folder}" for folder in folders),
    ],
    package_dir={"zsad_jax.configs": "configs"},
)
