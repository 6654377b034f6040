"""ViP2-CLIP (arXiv 2505.17692), with the setting of its published numbers.

    python -m zsad_jax.main --config configs/vip2clip.py[:VARIANT]

The published code uses the anomalous adjective in both prompts; `--config.method.adjective_bug=True` reproduces
this.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "ViP2-CLIP on MVTec AD and VisA, each with prompts trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

# The demo backbones have four blocks and few words, and were trained with a higher temperature.
DEMO = {
    "adjectives": ("normal", "abnormal"),
    "temperature": 0.2,
    "feature_layers": (24,),
    "top_k": 10,
}
DEMO_TRAINING = {"epochs": 10, "learning_rates": {"prompts": 3e-3, "fgp": 3e-3}}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("vip2clip")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, method=DEMO, training=DEMO_TRAINING)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano", method=DEMO, training=DEMO_TRAINING)
