"""ViP²-CLIP, Table 4: its modules UTPA, ViP-VCA and ViP-FGP. The main row is the full model.

    python -m zsad_jax.main --config configs/ablations/vip2clip_modules.py[:demo]

The first row is CLIP as it is: the numbers that the paper prints for it are far below those of learned prompts
without a module (Table 5).
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "ViP²-CLIP, Table 4: with and without UTPA, ViP-VCA and ViP-FGP",
    "demo": "the same on clip-nano, no downloads",
}

ROWS = {
    "none of UTPA, ViP-VCA, ViP-FGP": {"config": "configs/clip.py"},
    "ViP-VCA": {"utpa": False, "fgp": False},
    "ViP-FGP": {"utpa": False, "vca": False},
    "ViP-VCA + ViP-FGP": {"utpa": False},
    "UTPA + ViP-VCA": {"fgp": False},
    "UTPA + ViP-FGP": {"vca": False},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.ablation(__file__, variant, comparisons=ROWS)
