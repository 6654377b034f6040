"""Raw CLIP with one sentence per state: nothing is learned.

    python -m zsad_jax.main --config configs/clip.py            MVTec AD and VisA
    python -m zsad_jax.main --config configs/clip.py:demo       no download: a demonstration in minutes
    python -m zsad_jax.main --config configs/clip.py:demo_tips  the same over tips-nano

Its pixel AUROC is often below one half, as the papers print it.
"""

from ml_collections import ConfigDict

from zsad_jax import presets


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (the paper's), "demo" or "demo_tips"."""
    config = presets.paper("clip", train=False)
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config, train=False)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano", train=False)
