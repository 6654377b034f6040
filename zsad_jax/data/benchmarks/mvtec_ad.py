"""MVTec AD (Bergmann et al., CVPR 2019): 5 textures and 10 objects."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout


class MvtecAd(MvtecLayout):
    """Industrial textures and objects; masks for every defect."""

    name = "mvtec_ad"
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = (
        Archive(
            "mvtec_anomaly_detection.tar.xz",
            about="4.9 GB",
            sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        ),
    )
    TREE = "bottle/test/broken_large/000.png"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {
            "bottle": (209, 0),
            "cable": (224, 0),
            "capsule": (219, 0),
            "carpet": (280, 0),
            "grid": (264, 0),
            "hazelnut": (391, 0),
            "leather": (245, 0),
            "metal_nut": (220, 0),
            "pill": (267, 0),
            "screw": (320, 0),
            "tile": (230, 0),
            "toothbrush": (60, 0),
            "transistor": (213, 0),
            "wood": (247, 0),
            "zipper": (240, 0),
        },
        "test": {
            "bottle": (20, 63),
            "cable": (58, 92),
            "capsule": (23, 109),
            "carpet": (28, 89),
            "grid": (21, 57),
            "hazelnut": (40, 70),
            "leather": (32, 92),
            "metal_nut": (22, 93),
            "pill": (26, 141),
            "screw": (41, 119),
            "tile": (33, 84),
            "toothbrush": (12, 30),
            "transistor": (60, 40),
            "wood": (19, 60),
            "zipper": (32, 119),
        },
    }
