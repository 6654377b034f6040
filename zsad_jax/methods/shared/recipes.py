"""The settings behind published numbers that are not options of a method's config."""

from collections.abc import Mapping
from typing import Any, NamedTuple

CLIP = {"name": "clip-vit-l14-336", "image_size": 518}
# The recipe of AnomalyCLIP, used by most methods over CLIP.
TRAINING = {"epochs": 15, "batch_size": 8, "learning_rate": 1e-3, "b1": 0.5, "shuffle": True}
UNLIKE_PAPER = "unlike_paper"  # key of run.json: option -> [ours, the paper's]


class Recipe(NamedTuple):
    """The setting of a method's published numbers; its config has the defaults apart from `method_for`.

    Attributes:
      training: fields of `TrainingConfig`.
      backbone: arguments of `load_backbone`.
      image_score: None: the only one of the method.
      method_for: dataset -> fields of the method's config that differ there.
    """

    training: Mapping[str, Any] = TRAINING
    backbone: Mapping[str, Any] = CLIP
    image_score: str | None = None
    method_for: Mapping[str, Mapping[str, Any]] = {}
