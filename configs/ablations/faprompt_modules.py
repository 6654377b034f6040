"""FAPrompt, Tables 4, 17 and 18: its modules CAP and DAP, and the loss of each. The main row is the full model.

    python -m zsad_jax.main --config configs/ablations/faprompt_modules.py[:demo]

The base is AnomalyCLIP with its own training. As in the tables, all prompts are trained on MVTec AD, which is
not a target.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "FAPrompt, Tables 4, 17 and 18: modules and their losses",
    "demo": "the same on clip-nano, no downloads",
}

CAP, DAP = {"prior": False}, {"compound": False}
ROWS = {
    "base": {"config": "configs/anomalyclip.py"},
    "base + CAP": CAP,
    "base + CAP without orthogonal constraint loss": {**CAP, "orthogonality_weight": 0.0},
    "base + DAP": DAP,
    "base + DAP without abnormality prior loss": {**DAP, "prior_weight": 0.0},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.ablation(__file__, variant, comparisons=ROWS, rules="faprompt_ablations")
