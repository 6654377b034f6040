"""FAPrompt (arXiv 2410.10289), as its published numbers were made.

    python -m zsad_jax.main --config configs/faprompt.py            MVTec AD and VisA, trained on the other
    python -m zsad_jax.main --config configs/faprompt.py:demo       no download: a demonstration in minutes
    python -m zsad_jax.main --config configs/faprompt.py:demo_tips  the same over tips-nano

The prior sees the first ten patches of the raster, as in the released code; the paper's reading is
`--config.method.dap_select=topk`.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

TRAINING = {"epochs": 7}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (the paper's), "demo" or "demo_tips"."""
    config = presets.paper("faprompt", training=TRAINING)
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano")
