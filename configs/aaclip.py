"""AA-CLIP (arXiv 2503.06661), with the setting of its published numbers.

    python -m zsad_jax.main --config configs/aaclip.py[:VARIANT]

Training reads all images of the auxiliary set; the paper's subsets of 2, 16 or 64 images a category are not
included. `config.training` is for the second stage, and for the first one except for batch size, epochs
(`config.method.text_batch_size` and `text_epochs`) and milestones.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "AA-CLIP on MVTec AD and VisA, each with adapters trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

# The demo backbones have four blocks and were trained with a higher temperature.
DEMO = {"temperature": 0.2}
# In few steps, the published rate of the texts (1e-5) would hardly change them.
DEMO_TRAINING = {"learning_rate": 5e-4, "learning_rates": {"text": 5e-4}}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("aaclip")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict, backbone: str = "clip-nano") -> None:
    presets.demo(config, backbone=backbone, method=DEMO, training=DEMO_TRAINING)
    config.seeds = 3


def _demo_tips(config: ConfigDict) -> None:
    _demo(config, "tips-nano")
