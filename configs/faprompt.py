"""FAPrompt (arXiv 2410.10289), as its published numbers were made.

    python -m zsad_jax.main --config configs/faprompt.py[:VARIANT]

The prior sees the first ten patches of the raster, as in the released code; the paper's reading is
`--config.method.dap_select=topk`.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "FAPrompt on MVTec AD and VisA, trained on the other one",
    "demo": "demonstration over clip-nano, without downloads",
    "demo_tips": "demonstration over tips-nano, without downloads",
}

# The demo backbones are four blocks deep, and were trained with a softer temperature.
DEMO = {"temperature": 0.2}
DEMO_TRAINING = {"learning_rate": 1e-3}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("faprompt")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, method=DEMO, training=DEMO_TRAINING)


def _demo_tips(config: ConfigDict) -> None:
    """TIPS has no need of the value-value stream: its patches know where they are."""
    presets.demo(
        config, backbone="tips-nano", method={**DEMO, "vv_from": None}, training=DEMO_TRAINING
    )
