"""AdaCLIP on all datasets of the papers that compare with it.

    python -m zsad_jax.main --config configs/protocols/adaclip.py[:VARIANT]

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them). Running
the command again computes only what is missing. The report compares the results with the tables of the papers.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "AdaCLIP on all datasets of the papers that compare with it, with training",
    "polyps": "the datasets of AdaCLIP's code, with its training on a dataset of polyps as well",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.protocol(__file__, variant, {"": "compared", "polyps": "adaclip"})
