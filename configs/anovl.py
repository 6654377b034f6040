"""AnoVL: sentences on states in views of a domain, and patches that are adapted to each image; no training.

    python -m zsad_jax.main --config configs/anovl.py[:VARIANT]

Images have 240 pixels, as in the paper. Without adaptation: --config.method.adapter_steps=0
Over ViT-L/14, the published code has value-value attention in the last 12 blocks: --config.method.vv_from=13
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "AnoVL on MVTec AD and VisA, without training",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("anovl", train=False)
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, train=False)
    config.seeds = 3  # of the adapters


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano", train=False)
    config.seeds = 3
