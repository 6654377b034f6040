"""TPS on all datasets of its paper.

    python -m zsad_jax.main --config configs/protocols/tps.py[:VARIANT]

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them). Running
the command again computes only what is missing. The report compares the results with the tables of the paper.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TPS on all datasets of its paper, with training",
    "medical_image": "Table 3, image level: trained on HeadCT",
    "medical_pixel": "Table 3, pixel level: trained on ISIC",
    "nano": "the same datasets on clip-nano, with the included prompts",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.protocol(
        __file__,
        variant,
        {
            "": "tps",
            "medical_image": "tps_medical_image",
            "medical_pixel": "tps_medical_pixel",
            "nano": "tps",
        },
    )
