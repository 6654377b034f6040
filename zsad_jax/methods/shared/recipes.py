"""The settings behind the published numbers, as far as they are not the defaults of a method's config."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from zsad_jax.data.protocols import BRAIN

CLIP = {"name": "clip-vit-l14-336", "image_size": 518}
# TIPSomaly's numbers went through the PyTorch files: exact GELU, LayerNorm epsilon 1e-5 on the text side, and
# a position grid that was resized to 32x32 before it is resized to the 37x37 of 518 pixels.
TIPS = {"name": "tips-l14-hr", "image_size": 518, "lineage": "pytorch", "posemb_stage": (32, 32)}
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


_RECIPES = {
    "tipsomaly": Recipe(
        # The published order: class by class.
        training=TRAINING | {"epochs": 2, "shuffle": False},
        backbone=TIPS,
        # Of the token that synthetic captions trained; "first" is reported beside it.
        image_score="second",
        # Brain images are described in medical words, everything else in industrial ones.
        method_for={key: {"prompt_family": "medical"} for key in BRAIN},
    ),
    "vip2clip": Recipe(
        TRAINING | {"epochs": 10, "b1": 0.9, "learning_rates": {"prompts": 1e-3, "fgp": 1e-5}}
    ),
    "tps": Recipe(TRAINING | {"learning_rates": {"prompts": 1e-3, "pathway": 1e-4}}),
    "faprompt": Recipe(TRAINING | {"epochs": 7}, image_score="combined"),
}


def recipe_of(method: str) -> Recipe:
    """Returns the recipe of a method, which is AnomalyCLIP's for those without one of their own."""
    return _RECIPES.get(method, Recipe())
