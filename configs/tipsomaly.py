"""TIPSomaly, as its published numbers were made.

    python -m zsad_jax.main --config configs/tipsomaly.py[:VARIANT]

With `--config.train=True` the prompts are trained (on MVTec AD for all others, on VisA for MVTec AD) instead
of taken from the authors. Expected: the "Ours" row of the paper's table; 3 h on two CPU cores, minutes on an
accelerator.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TIPSomaly on MVTec AD and VisA, with the authors' prompts",
    "visa": "only VisA, which needs no registration",
    "demo": "demonstration over tips-nano, without downloads",
    "demo_clip": "demonstration over clip-nano, without downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("tipsomaly", train=False)
    config.checkpoints.mvtec_ad = "tipsomaly-l14-hr-mvtec_ad-epoch2"
    config.checkpoints.visa = "tipsomaly-l14-hr-visa-epoch2"
    return presets.vary(config, variant, {"visa": _visa, "demo": _demo, "demo_clip": _demo_clip})


def _visa(config: ConfigDict) -> None:
    """The part that needs no registration: open archive, published prompts."""
    config.targets = ("visa",)


def _demo(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano")


def _demo_clip(config: ConfigDict) -> None:
    """CLIP has one global token, and so one image score."""
    presets.demo(config)
    config.image_score = "first"
