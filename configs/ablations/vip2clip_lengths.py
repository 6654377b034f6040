"""ViP²-CLIP, Figure 10: learned tokens of each state (e) and of both states together (r).

    python -m zsad_jax.main --config configs/ablations/vip2clip_lengths.py[:demo]

The values, around the paper's 7 and 3, are ours: those of the figure were not available.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "ViP²-CLIP, Figure 10: lengths of the prompts",
    "demo": "the same on clip-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    values = ((3, 7), (1, 3)) if variant else ((5, 7, 9, 11), (1, 3, 5))
    keys = "method.num_prompts", "method.num_class_prompts"
    return presets.ablation(__file__, variant, sweep=dict(zip(keys, values, strict=True)))
