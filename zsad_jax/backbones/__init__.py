"""Frozen vision-language models, all behind one contract."""

from zsad_jax.backbones.base import Backbone, VisionFeatures
from zsad_jax.backbones.load import load_backbone

__all__ = ["Backbone", "VisionFeatures", "load_backbone"]
