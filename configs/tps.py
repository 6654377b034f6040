"""TPS, Text Prompt Shunt (AAAI 2025), as its published code trains it.

    python -m zsad_jax.main --config configs/tps.py            MVTec AD and VisA, trained on the other
    python -m zsad_jax.main --config configs/tps.py:demo       no download: a demonstration in minutes
    python -m zsad_jax.main --config configs/tps.py:demo_tips  the same over tips-nano

The pathway also works at test time; the released test script bypasses it:
`--config.method.pathway_at_test=False`.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

# The demo backbones are four blocks deep, and were trained with a softer temperature.
DEMO = {"temperature": 0.2, "feature_layers": (18, 24)}
DEMO_TRAINING = {"learning_rates": {"prompts": 1e-3, "pathway": 1e-3}}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (the paper's), "demo" or "demo_tips"."""
    config = presets.paper("tps")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, method=DEMO, training=DEMO_TRAINING)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano", method=DEMO, training=DEMO_TRAINING)
