"""ViP2-CLIP on all datasets of its paper.

    python -m zsad_jax.main --config configs/protocols/vip2clip.py[:VARIANT]

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them). Running
the command again computes only what is missing. The report compares the results with the tables of the paper.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "ViP2-CLIP on all datasets of its paper, with training",
    "medical": "Table 9: trained on a polyp dataset as well",
    "nano": "the same datasets on clip-nano, with the included prompts",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.protocol(
        __file__, variant, {"": "vip2clip", "medical": "vip2clip_medical", "nano": "vip2clip"}
    )
