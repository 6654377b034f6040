"""AdaCLIP (arXiv 2407.15795), with the setting of its published numbers.

    python -m zsad_jax.main --config configs/adaclip.py[:VARIANT]

The papers that compare with it train on one industrial dataset, as here. Its own training, with a dataset of
polyps as well, is that of configs/protocols/adaclip.py:polyps. The published code keeps the epoch that is best
on the test images, ours the last.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "AdaCLIP on MVTec AD and VisA, each with tokens trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

# The demo backbones have four blocks, and were trained with a higher temperature.
DEMO = {"temperature": 0.2}
DEMO_TRAINING = {"epochs": 4}  # each of them runs both towers with gradients


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("adaclip")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict, backbone: str = "clip-nano") -> None:
    presets.demo(config, backbone=backbone, method=DEMO, training=DEMO_TRAINING)
    config.seeds = 3


def _demo_tips(config: ConfigDict) -> None:
    _demo(config, "tips-nano")
