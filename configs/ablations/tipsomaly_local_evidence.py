"""TIPSomaly: local evidence, the strongest patch in the image score, with and without decoupled prompts.

    python -m zsad_jax.main --config configs/ablations/tipsomaly_local_evidence.py[:demo]

Both options act at test time only: the same learned prompts serve all points, by default the authors'.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TIPSomaly: image score with and without the strongest patch",
    "demo": "the same on tips-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    sweep = {"method.local_to_global": (False, True), "method.decoupled": (False, True)}
    return presets.ablation(__file__, variant, sweep=sweep)
