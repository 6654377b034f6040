"""VCP-CLIP (arXiv 2407.12276), with the setting of its published numbers.

    python -m zsad_jax.main --config configs/vcpclip.py[:VARIANT]

As published, training on VisA (`config.trained_on`) is at twice the rate and without mosaics. The authors
select the epoch on a few categories of the target; here it is the last one.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "VCP-CLIP on MVTec AD and VisA, each with prompts trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("vcpclip")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict, backbone: str = "clip-nano") -> None:
    presets.demo(config, backbone=backbone)
    config.seeds = 3


def _demo_tips(config: ConfigDict) -> None:
    _demo(config, "tips-nano")
