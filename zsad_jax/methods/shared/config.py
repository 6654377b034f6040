"""Options that all methods share, settings of published numbers, and block numbers of other towers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from zsad_jax.data.protocols import Naming
from zsad_jax.utils.config import check_fields, within
from zsad_jax.utils.errors import UserError

VISION_DEPTH = 24  # of the tower that block numbers in configs refer to: ViT-L
MAX_SIGMA = 1000  # of the smoothing, in pixels
FOUR_LAYERS = (6, 12, 18, 24)  # whose patch tokens many methods over CLIP compare
TEXT_DEPTH = 12
CLIP = {"name": "clip-vit-l14-336", "image_size": 518}
# The recipe of AnomalyCLIP, used by most methods over CLIP.
TRAINING = {"epochs": 15, "batch_size": 8, "learning_rate": 1e-3, "b1": 0.5, "shuffle": True}
Fields = Mapping[str, Any]
Form = Literal["open_clip", "adaclip", "openai"]  # of CLIP, see `Backbone.in_form`


class Recipe(NamedTuple):
    """The setting of a method's published numbers, beside the defaults of its config.

    Attributes:
      training: fields of `TrainingConfig`.
      backbone: arguments of `load_backbone`.
      image_score: None: the only one of the method.
      method_for: dataset -> fields of the method's config that differ there.
      seed: of the training; 111 in the code of AnomalyCLIP and TIPSomaly.
      trained_on: auxiliary dataset -> fields of both configs ("method", "training") in trainings on it.
      naming: names of categories in prompts, see `zsad_jax.data.prompt_name`.
    """

    training: Fields = TRAINING
    backbone: Fields = CLIP
    image_score: str | None = None
    method_for: Mapping[str, Fields] = {}
    seed: int = 111
    trained_on: Mapping[str, Mapping[str, Fields]] = {}
    naming: Naming = "published"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Options that the methods share.

    A method overrides defaults, and declares as a `ClassVar` what it has no option for. Block numbers
    count from 1 in a vision tower of `tower_depth` blocks and are scaled to the depth of the backbone's tower.

    Attributes:
      name: the method's key ("tipsomaly").
      title: its name as its paper prints it.
      needs_text: whether the method needs the text side of a backbone.
      needs_joint_text: whether text tokens must be as wide as the joint space.
      recipe: the setting of its published numbers.
      tower_depth: number of blocks of the tower in which `feature_layers` are counted.
      renamed: former keys, and what replaced them.
      training_only: fields that scoring does not see.
      scoring_only: fields that training does not see, so that changing them does not train again. It holds for
        the class alone, since the method of a subclass may train on them.
      feature_layers: vision blocks whose patch tokens are compared; their maps are summed.
      vv_from: first block of the value-value stream that patch tokens come from; None: ordinary attention.
      cls_norm: whether the global token passes the final LayerNorm of the vision tower.
      global_token: index of the backbone's global token that gives the image score, from 0.
      sigma: standard deviation of the map's Gaussian in pixels; 0 disables smoothing.
      temperature: softmax temperature of the cosines; None: the backbone's own, or its sigmoid (SigLIP).
      init_std: standard deviation of the normal distribution that learned tokens are drawn from.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs_text: ClassVar[bool] = True
    needs_joint_text: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = Recipe()
    tower_depth: ClassVar[int] = VISION_DEPTH
    renamed: ClassVar[Mapping[str, str]] = {}
    training_only: ClassVar[tuple[str, ...]] = ()
    scoring_only: ClassVar[tuple[str, ...]] = ()

    feature_layers: tuple[int, ...] = (VISION_DEPTH,)
    vv_from: int | None = within(None, 1, VISION_DEPTH)
    cls_norm: bool = True
    global_token: int = within(0, 0)
    sigma: float = within(4.0, 0, MAX_SIGMA)
    temperature: float | None = within(0.07, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        blocks, depth = self.feature_layers, self.tower_depth
        expected = (
            f"at least one block between 1 and {depth}, which is scaled to the depth of the tower"
        )
        fits = bool(blocks) and all(1 <= block <= depth for block in blocks)
        self.require("feature_layers", fits, expected)

    def require(self, key: str, fits: bool, expected: str) -> None:
        """Raises UserError if the value of a key does not fit."""
        if not fits:
            raise UserError(f"Config key '{key}' is {getattr(self, key)!r}. Expected {expected}.")

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """Returns `feature_layers`, scaled to a vision tower of `depth` blocks."""
        return tuple(scale_block(one, depth, of=self.tower_depth) for one in self.feature_layers)

    def reject_unused(self, reason: str, *keys: str) -> None:
        """Raises UserError if a key that has no effect, for a reason such as "without masks", is set."""
        for key in keys:
            default = getattr(type(self), key)
            expected = f"{default!r}, since it has no effect {reason}"
            self.require(key, getattr(self, key) == default, expected)

    @property
    def draws(self) -> str | None:
        """The field with the seed of draws in scoring, from which `config.seeds` counts; None: no draws."""
        return None

    def training_options(self) -> dict[str, Any]:
        """Returns the options that training sees."""
        scoring_only = vars(type(self)).get("scoring_only", ())  # not an inherited one
        options = dataclasses.asdict(self)
        return {name: value for name, value in options.items() if name not in scoring_only}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenClipConfig(MethodConfig):
    """Options of methods whose published code started from open_clip.

    Attributes:
      tower: how CLIP's parameters are used, see `Backbone.in_form`; other families have one form.
    """

    tower: Form = "open_clip"


def scale_block(block: int, depth: int, *, of: int = VISION_DEPTH) -> int:
    """Returns the block of a tower of `depth` blocks that corresponds to `block` in one of `of` blocks.

    Blocks count from 1; halves are rounded up. Two blocks may become the same in a shallow tower.
    """
    return min(max((2 * block * depth + of) // (2 * of), 1), depth)


def check_texts(config: MethodConfig, *keys: str, place: str = "") -> None:
    """Raises UserError if the text of a key, or one of several, is empty or lacks `place`, such as "{}"."""
    for key in keys:
        value = getattr(config, key)
        texts = (value,) if isinstance(value, str) else value
        fits = bool(texts) and all(text.strip() and place in text for text in texts)
        expected = f"text with {place}, where a name is inserted" if place else "text"
        config.require(key, fits, expected)
