"""FAPrompt, Figure 4: K, the anomalous prompts.

    python -m zsad_jax.main --config configs/ablations/faprompt_prompts.py[:demo]

The values, around the paper's 10, are ours: those of the figure were not available.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "FAPrompt, Figure 4: number of anomalous prompts",
    "demo": "the same on clip-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    values = (1, 5, 10) if variant else (1, 5, 10, 15, 20)
    sweep = {"method.num_abnormal": values}
    return presets.ablation(__file__, variant, sweep=sweep, rules="faprompt_ablations")
