"""CoOp on all datasets of the papers that compare with it.

    python -m zsad_jax.main --config configs/protocols/coop.py

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them). Running
the command again computes only what is missing. The report compares the results with the tables of the papers.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {"": "CoOp on all datasets of the papers that compare with it, with training"}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.protocol(__file__, variant, {"": "compared"})
