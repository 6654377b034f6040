"""CLIP with one fixed prompt per state; nothing is learned.

    python -m zsad_jax.main --config configs/clip.py[:VARIANT]

Its pixel AUROC is often below 0.5, as in the tables of the papers.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "CLIP on MVTec AD and VisA, without training",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("clip", train=False)
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, train=False)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano", train=False)
