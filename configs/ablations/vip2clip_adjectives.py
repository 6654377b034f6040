"""ViP²-CLIP, Table 6: the adjectives of the normal and the anomalous state; the main row has good/damaged.

    python -m zsad_jax.main --config configs/ablations/vip2clip_adjectives.py[:demo]

The demo has other words, since an adjective must be a single token and clip-nano has few. Its main row has
normal/abnormal.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "ViP²-CLIP, Table 6: adjectives in the prompts",
    "demo": "the same on clip-nano, no downloads",
}

PAIRS = {
    "": (("normal", "abnormal"), ("perfect", "flawed"), ("flawless", "imperfect")),
    "demo": (("perfect", "damaged"), ("flawless", "broken"), ("intact", "bad")),
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    rows = {
        f"state words {'/'.join(pair)}": {"adjectives": pair}
        for pair in PAIRS["demo" if variant else ""]
    }
    return presets.ablation(__file__, variant, comparisons=rows)
