"""DINOv2 with and without registers, vision only, over the original, timm's and Hugging Face's files.

Sources: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (TMLR 2024), Darcet et al.,
"Vision Transformers Need Registers" (ICLR 2024), and their release.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.backbones import family, vit
from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.checkpoints import dinov2 as dinov2_checkpoints
from zsad_jax.backbones.checkpoints import vit as vit_checkpoints
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.backbones.registry import Release, WeightFiles
from zsad_jax.backbones.transformer import tree_of
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError, suggest

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

PositionRule = Literal["offset", "size", "antialias"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSizes(vit.ViTSizes):
    """Sizes and options of the tower; `position_rule` None is that of the original."""

    num_global_tokens: int = 1
    activation: str = "gelu"
    position_rule: PositionRule | None = None

    def resize_positions(
        self, grid: Float[Array, "1 g g d"], size: tuple[int, int]
    ) -> Float[Array, "1 h w d"]:
        rule = self.position_rule or ("antialias" if self.num_registers else "offset")
        return resize_position_grid(grid, size, rule)


def resize_position_grid(
    grid: Float[Array, "1 g g d"], size: tuple[int, int], rule: PositionRule
) -> Float[Array, "1 h w d"]:
    """Resizes positions bicubically.

    "offset" is the original's rule for models without registers: no antialiasing, and the scale (h + 0.1) / g;
    "size" is Hugging Face's for them, with h / g. "antialias" is that of models with registers, and timm's.
    """
    side = grid.shape[1]
    if size == (side, side):
        return grid
    if rule == "antialias":
        return jnp.asarray(jax.image.resize(grid, (1, *size, grid.shape[-1]), "cubic"))
    offset = 0.1 if rule == "offset" else 0.0
    return vit.resize_by(grid, *(vit.cubic_matrix(side, target, offset) for target in size))


def load(
    name: str, located: WeightFiles, release: Release | None, options: family.LoadOptions
) -> Backbone:
    """Reads DINOv2 from one file; see `family.LoadFn`."""
    if located.weights is None or located.tokenizer is not None:
        raise UserError("DINOv2 is one file, and has no text side. Pass weights=PATH alone.")
    family.check_activation(options.activation, ("gelu",), "DINOv2")
    source = f"The file {located.weights}"
    arrays = read_arrays(located.weights)
    native = dinov2_checkpoints.from_arrays(arrays, options.num_heads, source)
    registers = native.arrays[f"{vit_checkpoints.TOKENS}/cls"].shape[1] - 1
    shown = {**vit_checkpoints.vision_sizes(native), "num_registers": registers}
    chosen = family.apply_options(name, {"position_rule": None}, options.overrides, (shown, {}))
    if (rule := chosen["position_rule"]) not in (None, *get_args(PositionRule)):
        hint = suggest(str(rule), get_args(PositionRule))
        raise UserError(f"position_rule={rule!r} is not a rule. {hint}")
    sizes = VisionSizes(**shown, **chosen, dtype=options.dtype, attention=options.attention)
    tower = vit.VisionEncoder(sizes)
    params = {"vision": jax.tree.map(jnp.asarray, native.fit(tree_of(tower)))}
    return FAMILY.assemble(name, located, release, options, [tower], params)


FAMILY = family.Family(
    "dinov2",
    load,
    "weights=PATH",
    [(vit.VisionEncoder, VisionSizes)],
    preprocess=functools.partial(Preprocess, resize="bicubic", mean=MEAN, std=STD),
)
