"""TIPSomaly on all datasets of its paper.

    python -m zsad_jax.main --config configs/protocols/tipsomaly.py[:VARIANT]

`--config.train=True` trains the prompts. Datasets that are not prepared are skipped with a warning
(`python -m zsad_jax.data list` shows them). Running the command again computes only what is missing. The
report compares the results with the tables of the paper.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TIPSomaly on all datasets of its paper, with the authors' prompts",
    "nano": "the same datasets on tips-nano, with the included prompts",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.protocol(__file__, variant, {"": "tipsomaly", "nano": "tipsomaly"})
