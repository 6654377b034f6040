"""FAPrompt, Figure 7: learned tokens that the prompts share, and those of each anomalous prompt.

    python -m zsad_jax.main --config configs/ablations/faprompt_lengths.py[:demo]

The values, around the paper's 5 and 2, are ours: those of the figure were not available.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "FAPrompt, Figure 7: lengths of the prompts",
    "demo": "the same on clip-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    values = ((2, 5), (1, 2)) if variant else ((2, 5, 8, 10), (1, 2, 4))
    keys = "method.num_prompts", "method.num_own_prompts"
    sweep = dict(zip(keys, values, strict=True))
    return presets.ablation(__file__, variant, sweep=sweep, rules="faprompt_ablations")
