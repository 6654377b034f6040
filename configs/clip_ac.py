"""CLIP-AC: the mean over 80 templates of CLIP, nothing is learned.

    python -m zsad_jax.main --config configs/clip_ac.py[:VARIANT]

Its pixel AUROC is often below one half, as the papers print it.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "CLIP-AC on MVTec AD and VisA, without training",
    "demo": "demonstration over clip-nano, without downloads",
    "demo_tips": "demonstration over tips-nano, without downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("clip_ac", train=False)
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, train=False)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano", train=False)
