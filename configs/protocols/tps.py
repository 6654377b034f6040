"""TPS on all the datasets of its paper, by one command.

    python -m zsad_jax.main --config configs/protocols/tps.py
        trained first
    python -m zsad_jax.main --config configs/protocols/tps.py:medical_image
        its Table 3, image level: trained on HeadCT
    python -m zsad_jax.main --config configs/protocols/tps.py:medical_pixel
        its Table 3, pixel level: trained on ISIC
    python -m zsad_jax.main --config configs/protocols/tps.py:nano
        over clip-nano, with the included prompts; no downloads

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them); the
same command again does only what is missing. The report has the paper's tables beside the results.
"""

from ml_collections import ConfigDict

from zsad_jax import presets


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "medical_image", "medical_pixel" or "nano"."""
    return presets.protocol(
        __file__,
        variant,
        {"": "tps", "medical_image": "tps_medical_image", "medical_pixel": "tps_medical_pixel"},
    )
