"""WinCLIP: windows of an image are compared with sentences on states; nothing is learned.

    python -m zsad_jax.main --config configs/winclip.py[:VARIANT]

Images have 240 pixels, as in the paper. Larger grids take longer: each window passes through the tower.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "WinCLIP on MVTec AD and VisA, without training",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("winclip", train=False)
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict, backbone: str = "clip-nano") -> None:
    presets.demo(config, backbone=backbone, train=False)
    config.comparisons = {"4-shot": {"shots": 4}, **config.comparisons}
    config.seeds = 3  # draws of the four references


def _demo_tips(config: ConfigDict) -> None:
    _demo(config, "tips-nano")
