"""TPS, Text Prompt Shunt (AAAI 2025), with the training of its published code.

    python -m zsad_jax.main --config configs/tps.py[:VARIANT]

The pathway is also used at test time. The released test script bypasses it, as does
`--config.method.pathway_at_test=False`.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TPS on MVTec AD and VisA, each with prompts trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

# The demo backbones have four blocks and were trained with a higher temperature.
DEMO = {"temperature": 0.2, "feature_layers": (18, 24)}
DEMO_TRAINING = {"learning_rates": {"prompts": 1e-3, "pathway": 1e-3}}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("tps")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, method=DEMO, training=DEMO_TRAINING)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano", method=DEMO, training=DEMO_TRAINING)
