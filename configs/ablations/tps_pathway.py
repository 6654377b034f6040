"""TPS: the pathway. The main row has one, which all layers share, as in the published code.

    python -m zsad_jax.main --config configs/ablations/tps_pathway.py[:demo]

The paper writes a pathway for each layer, and one softmax over the sum of the layers. The released test script
bypasses the pathway that it trained.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TPS: pathway per layer, bypassed at test time, or not at all",
    "demo": "the same on clip-nano, no downloads",
}

ROWS = {
    "without pathway": {"pathway": False},
    "bypassed at test time": {"pathway_at_test": False},
    "one pathway per layer": {"shared_pathway": False},
    "one softmax over layers": {"segmentation": "summed"},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    return presets.ablation(__file__, variant, comparisons=ROWS)
