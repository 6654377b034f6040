"""The sizes of the released models, so that they can be described before their weights are here.

The fields are those of `VisionSizes` and `TextSizes` of the family's module.
"""

from typing import Any, NamedTuple

from zsad_jax.backbones.transformer import swiglu_hidden

Sizes = tuple[dict[str, Any], dict[str, Any]]  # of the vision and of the text tower


class TipsTower(NamedTuple):
    """A size of TIPS (Maninis et al. 2025, and the release); both towers are equally wide."""

    width: int
    num_heads: int
    mlp_dim: int
    vision_depth: int
    text_depth: int = 12
    swiglu: bool = False


TIPS_TOWERS = {
    "s14": TipsTower(384, 6, 1536, 12),
    "b14": TipsTower(768, 12, 3072, 12),
    "l14": TipsTower(1024, 16, 4096, 24),
    "so400m14": TipsTower(1152, 16, 4304, 27, 27),
    "g14": TipsTower(1536, 24, 6144, 40, swiglu=True),
}
TIPS_VOCABULARY, CLIP_VOCABULARY = 32_000, 49_408
FIRST_GRID, SECOND_GRID = 16, 32  # of positions in the native files of TIPS and of TIPSv2


def tips_sizes(tower: TipsTower, *, grid: int, vocabulary: int = TIPS_VOCABULARY) -> Sizes:
    """Sizes of a TIPS model whose native files hold a position grid of this side."""
    shared = {"width": tower.width, "num_heads": tower.num_heads}
    vision = {
        "patch_size": 14,
        **shared,
        "depth": tower.vision_depth,
        "mlp_dim": swiglu_hidden(tower.mlp_dim) if tower.swiglu else tower.mlp_dim,
        "feed_forward": "swiglu" if tower.swiglu else "mlp",
        "grid": grid,
        "num_global_tokens": 2,
    }
    text = {**shared, "depth": tower.text_depth, "mlp_dim": tower.mlp_dim, "vocabulary": vocabulary}
    return vision, text


def clip_sizes(
    *,
    patch_size: int,
    grid: int,
    width: int,
    depth: int,
    text_width: int,
    embed_dim: int,
    text_depth: int = 12,
    vocabulary: int = CLIP_VOCABULARY,
    head_width: int = 64,
) -> Sizes:
    """Sizes of a CLIP ViT (Radford et al. 2021, table 20): MLPs are four times as wide as the tower."""
    vision = {
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": width // head_width,
        "mlp_dim": 4 * width,
        "grid": grid,
        "embed_dim": embed_dim,
    }
    text = {
        "vocabulary": vocabulary,
        "width": text_width,
        "depth": text_depth,
        "num_heads": text_width // head_width,
        "mlp_dim": 4 * text_width,
        "length": 77,
        "embed_dim": embed_dim,
    }
    return vision, text


_BASE: dict[str, int] = {"width": 768, "depth": 12, "text_width": 512, "embed_dim": 512}
_LARGE: dict[str, int] = {"width": 1024, "depth": 24, "text_width": 768, "embed_dim": 768}
_NANO: dict[str, int] = {"width": 128, "depth": 4, "text_width": 128, "embed_dim": 128}

SIZES: dict[str, Sizes] = {
    "tips-s14-hr": tips_sizes(TIPS_TOWERS["s14"], grid=FIRST_GRID),
    "tips-b14-hr": tips_sizes(TIPS_TOWERS["b14"], grid=FIRST_GRID),
    "tips-l14-hr": tips_sizes(TIPS_TOWERS["l14"], grid=FIRST_GRID),
    "tips-so400m14-hr": tips_sizes(TIPS_TOWERS["so400m14"], grid=FIRST_GRID),
    "tips-g14-lr": tips_sizes(TIPS_TOWERS["g14"], grid=FIRST_GRID),
    "tips-g14-hr": tips_sizes(TIPS_TOWERS["g14"], grid=FIRST_GRID),
    "tipsv2-b14": tips_sizes(TIPS_TOWERS["b14"], grid=SECOND_GRID),
    "tipsv2-l14": tips_sizes(TIPS_TOWERS["l14"], grid=SECOND_GRID),
    "tipsv2-so400m14": tips_sizes(TIPS_TOWERS["so400m14"], grid=SECOND_GRID),
    "tipsv2-g14": tips_sizes(TIPS_TOWERS["g14"], grid=SECOND_GRID),
    "clip-vit-b32": clip_sizes(patch_size=32, grid=7, **_BASE),
    "clip-vit-b16": clip_sizes(patch_size=16, grid=14, **_BASE),
    "clip-vit-l14": clip_sizes(patch_size=14, grid=16, **_LARGE),
    "clip-vit-l14-336": clip_sizes(patch_size=14, grid=24, **_LARGE),
    "tips-nano": tips_sizes(TipsTower(128, 4, 512, 4, 2), grid=FIRST_GRID, vocabulary=2048),
    "clip-nano": clip_sizes(
        patch_size=14, grid=16, text_depth=2, vocabulary=1514, head_width=32, **_NANO
    ),
}
