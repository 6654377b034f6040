"""TPS: hand-written prompts (A1), learned prompts (A2), and the pathway. The main row has the pathway.

    python -m zsad_jax.main --config configs/ablations/tps_modules.py[:demo]

Nothing is learned for A1.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TPS: hand-written and learned prompts, and the pathway",
    "demo": "the same on clip-nano, no downloads",
}

ROWS = {
    "A1: hand-written prompts": {"learned": False},
    "A2: learned prompts": {"pathway": False},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.ablation(__file__, variant, comparisons=ROWS)
