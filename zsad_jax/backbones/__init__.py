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


_MODULES = {"load_backbone": "load", "Backbone": "base", "VisionFeatures": "base"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the release records need no JAX."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
