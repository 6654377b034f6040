"""TIPSomaly: the backbone. Prompts are trained on each, since the authors' are for TIPS L/14 only.

    python -m zsad_jax.main --config configs/ablations/tipsomaly_backbone.py[:demo]

CLIP and SigLIP2 have one global token and therefore only the image score "first".
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "TIPSomaly: on CLIP, SigLIP2 and other models of TIPS",
    "demo": "the same on tips-nano and clip-nano, no downloads",
}

BACKBONES = {
    "CLIP ViT-L/14@336": {"name": "clip-vit-l14-336"},
    "SigLIP2 L/16": {"name": "siglip2-l16-512", "image_size": 512},
    "TIPS S/14": {"name": "tips-s14-hr", "lineage": "pytorch"},
    "TIPS B/14": {"name": "tips-b14-hr", "lineage": "pytorch"},
    "TIPSv2 L/14": {"name": "tipsv2-l14", "lineage": "pytorch"},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    backbones = {"CLIP": {"name": "clip-nano"}} if variant else BACKBONES
    size = {"image_size": 252 if variant else 518}
    rows = {label: {"backbone": {**size, **one}} for label, one in backbones.items()}
    config = presets.ablation(__file__, variant, comparisons=rows)
    config.train = True
    return config
