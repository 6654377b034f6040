"""Frozen vision-language models, all behind one contract."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsad_jax.backbones.base import Backbone, VisionFeatures
    from zsad_jax.backbones.load import load_backbone

__all__ = [
    # Loading
    "load_backbone",
    # The contract
    "Backbone",
    "VisionFeatures",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the release records need no JAX."""
    if name not in __all__:
        raise AttributeError(f"module 'zsad_jax.backbones' has no attribute {name!r}")
    home = "load" if name == "load_backbone" else "base"
    return getattr(importlib.import_module(f"zsad_jax.backbones.{home}"), name)
