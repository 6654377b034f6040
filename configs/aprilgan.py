"""APRIL-GAN (arXiv 2305.17382), with the setting of its published numbers.

    python -m zsad_jax.main --config configs/aprilgan.py[:VARIANT]

As published, training takes 3 epochs on MVTec AD, and on VisA (`config.trained_on`) 15 without mosaics. With
`--config.shots=4`, images are also compared with 4 normal ones of each category.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "APRIL-GAN on MVTec AD and VisA, each with layers trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

# The demo backbones have four blocks and were trained with a higher temperature.
DEMO = {"temperature": 0.2}
DEMO_TRAINING = {"learning_rate": 1e-3}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("aprilgan")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict, backbone: str = "clip-nano") -> None:
    presets.demo(config, backbone=backbone, method=DEMO, training=DEMO_TRAINING)
    config.seeds = 3


def _demo_tips(config: ConfigDict) -> None:
    _demo(config, "tips-nano")
