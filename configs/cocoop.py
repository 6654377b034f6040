"""CoCoOp (CVPR 2022) as an anomaly detector.

    python -m zsad_jax.main --config configs/cocoop.py[:VARIANT]

The training is that of AnomalyCLIP, for comparability. Training on masks and value-value patch tokens are
assumptions: the papers that report its maps do not describe them.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "CoCoOp on MVTec AD and VisA, each with prompts trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

# The demo backbones have four blocks and were trained with a higher temperature.
DEMO = {"temperature": 0.2}
DEMO_TRAINING = {"learning_rate": 1e-3}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("cocoop")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, method=DEMO, training=DEMO_TRAINING)


def _demo_tips(config: ConfigDict) -> None:
    """Compares the ordinary patch tokens, which are spatially aware in TIPS."""
    presets.demo(
        config,
        backbone="tips-nano",
        method={**DEMO, "vv_from": None},
        training={"learning_rate": 2e-3},
    )
