"""ViP²-CLIP, Figure 6: K, the patches of each layer that the image score comes from.

python -m zsad_jax.main --config configs/ablations/vip2clip_top_k.py[:demo]
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "ViP²-CLIP, Figure 6: number of patches in the image score",
    "demo": "the same on clip-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    values = (1, 10, 50) if variant else (1, 10, 20, 50, 100, 200)
    return presets.ablation(__file__, variant, sweep={"method.top_k": values})
