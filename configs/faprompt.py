"""FAPrompt (arXiv 2410.10289), with the setting of its published numbers.

    python -m zsad_jax.main --config configs/faprompt.py[:VARIANT]

The prior is computed from the first ten patches in raster order, as in the released code. The paper describes
the ten most anomalous patches: `--config.method.dap_select=topk`.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "FAPrompt on MVTec AD and VisA, each with prompts trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

# The demo backbones have four blocks and were trained with a higher temperature.
DEMO = {"temperature": 0.2}
DEMO_TRAINING = {"learning_rate": 1e-3}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("faprompt")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, method=DEMO, training=DEMO_TRAINING)


def _demo_tips(config: ConfigDict) -> None:
    """Compares the ordinary patch tokens, which are spatially aware in TIPS."""
    presets.demo(
        config, backbone="tips-nano", method={**DEMO, "vv_from": None}, training=DEMO_TRAINING
    )
