"""Zero-shot anomaly detection in JAX: an image in, an anomaly score and an anomaly map out."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsad_jax import metrics
    from zsad_jax.backbones import load_backbone
    from zsad_jax.detector import Detector, Prediction, load_detector
    from zsad_jax.experiment import presets

__version__ = "0.2.0"
__all__ = ["Detector", "Prediction", "load_backbone", "load_detector", "metrics", "presets"]

_MODULES = {"metrics": "zsad_jax.metrics", "presets": "zsad_jax.experiment.presets"}
_HOMES = {
    "load_backbone": "zsad_jax.backbones",
    "Detector": "zsad_jax.detector",
    "Prediction": "zsad_jax.detector",
    "load_detector": "zsad_jax.detector",
}


def __getattr__(name: str) -> Any:
    """Loads what is used when it is used, so that the import itself stays light."""
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zsad_jax' has no attribute {name!r}")
