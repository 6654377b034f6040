"""CoCoOp (CVPR 2022) as a normal/abnormal detector.

    python -m zsad_jax.main --config configs/cocoop.py            MVTec AD and VisA, trained on the other
    python -m zsad_jax.main --config configs/cocoop.py:demo       no download: a demonstration in minutes
    python -m zsad_jax.main --config configs/cocoop.py:demo_tips  the same over tips-nano

Trained by AnomalyCLIP's recipe, for comparability. That it learns from the masks and compares value-value
patches is our assumption: the papers that print its maps do not say.
"""

from ml_collections import ConfigDict

from zsad_jax import presets


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (the paper's), "demo" or "demo_tips"."""
    config = presets.paper("cocoop")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano")
