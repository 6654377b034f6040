"""ViP²-CLIP, Table 5: unified text-patch alignment (UTPA) against two branches, with learned prompts alone.

    python -m zsad_jax.main --config configs/ablations/vip2clip_alignment.py[:demo]

The image score of CLIP_DUAL comes from the global token, that of CLIP_UTPA from the patches. The paper has no
row of the full model, which is the main row here.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "ViP²-CLIP, Table 5: UTPA against dual-branch alignment",
    "demo": "the same on clip-nano, no downloads",
}

STATIC = {"vca": False, "fgp": False}
ROWS = {"CLIP_DUAL": {**STATIC, "utpa": False}, "CLIP_UTPA": STATIC}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.ablation(__file__, variant, comparisons=ROWS)
