"""Zero-shot anomaly detection in JAX: an image in, an anomaly score and an anomaly map out."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsad_jax import backbones, data, methods, metrics
    from zsad_jax.backbones import load_backbone
    from zsad_jax.detector import Detector, Prediction, load_detector
    from zsad_jax.experiment import presets

__version__ = "0.4.0"
__all__ = [
    # Detection
    "load_detector",
    "Detector",
    "Prediction",
    # Backbones
    "load_backbone",
    # Packages
    "backbones",
    "data",
    "methods",
    "metrics",
    # Configs
    "presets",
]
_MODULES = {name: name for name in ("backbones", "data", "methods", "metrics")}
_MODULES["presets"] = "experiment.presets"

# While `python -m` locates a module, this is its program name. The imports of a command take seconds, in
# which Ctrl-C would end in a traceback.
if sys.argv[:1] == ["-m"] and any("zsad_jax." in word for word in sys.orig_argv):
    from zsad_jax.utils import interrupts

    interrupts.install()


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the import itself stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'zsad_jax' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"zsad_jax.{_MODULES[name]}")
    home = "backbones" if name == "load_backbone" else "detector"
    return getattr(importlib.import_module(f"zsad_jax.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
