"""CoOp (IJCV 2022) as a normal/abnormal detector.

    python -m zsad_jax.main --config configs/coop.py[:VARIANT]

Trained by AnomalyCLIP's recipe, for comparability; CoOp's own is `--config.training.optimizer=sgd` with a
learning rate of 0.002, `schedule=cosine`, `warmup_epochs=1` and batches of 32.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "CoOp on MVTec AD and VisA, trained on the other one",
    "demo": "demonstration over clip-nano, without downloads",
    "demo_tips": "demonstration over tips-nano, without downloads",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("coop")
    return presets.vary(config, variant, {"demo": _demo, "demo_tips": _demo_tips})


def _demo(config: ConfigDict) -> None:
    presets.demo(config)


def _demo_tips(config: ConfigDict) -> None:
    presets.demo(config, backbone="tips-nano")
