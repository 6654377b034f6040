"""MuSc: the unlabeled images of a category score one another; nothing is learned.

    python -m zsad_jax.main --config configs/musc.py[:VARIANT]

Its numbers are not those of single images: an image's score depends on the other images of the target.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "MuSc on MVTec AD and VisA, without training",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("musc", train=False)
    config.features.max_gb = 100.0  # four layers of MVTec AD and VisA take 39 and 48 GB
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict, backbone: str = "clip-nano") -> None:
    presets.demo(config, backbone=backbone, train=False)
    config.comparisons = {"4-shot": {"shots": 4}, **config.comparisons}
    config.seeds = 3  # draws of the four references


def _demo_tips(config: ConfigDict) -> None:
    _demo(config, "tips-nano")
