"""Options that all methods share."""

import dataclasses

from zsad_jax.methods.shared.blocks import VISION_DEPTH, check_blocks
from zsad_jax.utils.config import check_fields, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Options that the methods share.

    A method overrides defaults, and declares as a `ClassVar` what it has no option for. Block numbers
    count from 1 in a vision tower of 24 blocks and are scaled to the depth of the backbone's tower.

    Attributes:
      feature_layers: vision blocks whose patch tokens are compared; their maps are summed.
      vv_from: first block of the value-value stream that patch tokens come from; None: ordinary attention.
      cls_norm: whether the global token passes the final LayerNorm of the vision tower.
      global_token: index of the backbone's global token that gives the image score, from 0.
      sigma: standard deviation of the map's Gaussian in pixels; 0 disables smoothing.
      temperature: softmax temperature of the cosines; None: the backbone's own.
      init_std: standard deviation of the normal distribution that learned tokens are drawn from.
    """

    feature_layers: tuple[int, ...] = (VISION_DEPTH,)
    vv_from: int | None = within(None, 1, VISION_DEPTH)
    cls_norm: bool = True
    global_token: int = within(0, 0)
    sigma: float = within(4.0, 0)
    temperature: float | None = within(0.07, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_blocks("feature_layers", self.feature_layers)
