"""FAPrompt on all datasets of its paper.

    python -m zsad_jax.main --config configs/protocols/faprompt.py[:VARIANT]

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them). Running
the command again computes only what is missing. The report compares the results with the tables of the paper.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "FAPrompt on all datasets of its paper, with training",
    "full": "the same, trained on all images, as the paper describes",
    "nano": "the same datasets on clip-nano, with the included prompts",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.protocol(
        __file__, variant, {"": "faprompt", "full": "faprompt_full", "nano": "faprompt"}
    )
