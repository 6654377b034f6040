"""TIPSomaly, with the setting of its published numbers.

    python -m zsad_jax.main --config configs/tipsomaly.py[:VARIANT]

By default, the authors' learned prompts are used. `--config.train=True` trains them, on MVTec AD for all other
targets and on VisA for MVTec AD. A run takes 3 h on two CPU cores, and minutes on an accelerator.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TIPSomaly on MVTec AD and VisA, with the authors' prompts",
    "visa": "VisA only, which requires no registration",
    "demo": "demo on tips-nano, no downloads",
    "demo_clip": "demo on clip-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("tipsomaly", train=False)
    config.checkpoints.mvtec_ad = "tipsomaly-l14-hr-mvtec_ad-epoch2"
    config.checkpoints.visa = "tipsomaly-l14-hr-visa-epoch2"
    return presets.vary(config, variant, {"visa": _visa, "demo": _demo, "demo_clip": _demo_clip})


def _visa(config: ConfigDict) -> None:
    """Evaluates only VisA, whose archive is open and whose prompts are published."""
    config.targets = ("visa",)


def _demo(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano")


def _demo_clip(config: ConfigDict) -> None:
    """Selects the only image score: CLIP has one global token."""
    presets.demo(config)
    config.image_score = "first"
