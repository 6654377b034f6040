"""TIPSomaly on all the datasets of its paper, by one command.

    python -m zsad_jax.main --config configs/protocols/tipsomaly.py
        with the authors' prompts; `--config.train=True` trains them
    python -m zsad_jax.main --config configs/protocols/tipsomaly.py:nano
        over tips-nano, with the included prompts; no downloads

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them); the
same command again does only what is missing. The report has the paper's tables beside the results.
"""

from ml_collections import ConfigDict

from zsad_jax import presets


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "nano"."""
    return presets.protocol(__file__, variant, {"": "tipsomaly"})
