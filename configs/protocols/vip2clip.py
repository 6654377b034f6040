"""ViP2-CLIP on all the datasets of its paper, by one command.

    python -m zsad_jax.main --config configs/protocols/vip2clip.py
        trained first
    python -m zsad_jax.main --config configs/protocols/vip2clip.py:medical
        its Table 9: a polyp set is added to the training
    python -m zsad_jax.main --config configs/protocols/vip2clip.py:nano
        over clip-nano, with the included prompts; no downloads

Datasets that are not prepared are skipped with a warning (`python -m zsad_jax.data list` shows them); the
same command again does only what is missing. The report has the paper's tables beside the results.
"""

from ml_collections import ConfigDict

from zsad_jax import presets


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "medical" or "nano"."""
    return presets.protocol(__file__, variant, {"": "vip2clip", "medical": "vip2clip_medical"})
