"""TIPSomaly: decoupled prompts, fixed for the image score and learned for the map.

    python -m zsad_jax.main --config configs/ablations/tipsomaly_decoupled.py[:demo]

The main row is the method as proposed; the others use one kind of prompt for both. By default, the authors'
learned prompts are used, as in `configs/tipsomaly.py`.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TIPSomaly: decoupled, only fixed, or only learned prompts",
    "demo": "the same on tips-nano, no downloads",
}

ROWS = {
    "fixed prompts": {"learning": "none"},
    "learned prompts": {"decoupled": False},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.ablation(__file__, variant, comparisons=ROWS)
