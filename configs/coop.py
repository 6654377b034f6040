"""CoOp (IJCV 2022) as an anomaly detector.

    python -m zsad_jax.main --config configs/coop.py[:VARIANT]

The training is that of AnomalyCLIP, for comparability. The training of CoOp itself is
`--config.training.optimizer=sgd` with a learning rate of 0.002, `schedule=cosine`, `warmup_epochs=1` and
batches of 32.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "CoOp on MVTec AD and VisA, each with prompts trained on the other",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("coop")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano")
