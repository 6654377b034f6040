"""Normal reference images: distances to the nearest patches (AnomalyDINO), or from their subspace (SubspaceAD).

    python -m zsad_jax.main --config configs/knn.py[:VARIANT]

Nothing is learned and no text is read, so that any backbone serves: --config.backbone.name=tips-l14-hr. Only
dinov2-s14 has masks of the background.
"""

from ml_collections import ConfigDict

from zsad_jax import presets

VARIANTS = {
    "": "AnomalyDINO on MVTec AD and VisA",
    "subspace": "SubspaceAD on MVTec AD and VisA",
    "demo": "demo on clip-nano, no downloads",
    "demo_tips": "demo on tips-nano, no downloads",
}

SUBSPACE = {
    "variant": "subspace",
    "feature_layers": (23, 24, 25, 26, 27, 28, 29),
    "tower_depth": 40,
    "patch_norm": False,
    "views": "random",
    "num_views": 31,
    "smoothing": "3x3",
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config of a variant."""
    config = presets.paper("knn", train=False)
    config.shots, config.seeds = 4, 3  # draws of four normal images of each category
    variants = {"subspace": _subspace, "demo": _demo, "demo_tips": _demo_tips}
    return presets.vary(config, variant, variants)


def _subspace(config: ConfigDict) -> None:
    config.method.update(SUBSPACE)
    config.method_for = ConfigDict()
    config.backbone.update({"name": "dinov2-g14-reg", "image_size": 672})


def _demo(config: ConfigDict, backbone: str = "clip-nano") -> None:
    presets.demo(config, backbone=backbone, train=False)
    config.comparisons = {"subspace": SUBSPACE, **config.comparisons}


def _demo_tips(config: ConfigDict) -> None:
    _demo(config, "tips-nano")
