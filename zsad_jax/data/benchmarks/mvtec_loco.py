"""MVTec LOCO AD (Bergmann et al., IJCV 2022): what is broken, and what is wrongly put together."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout


class MvtecLoco(MvtecLayout):
    """Structural and logical anomalies of five compositions.

    An image has a mask for each of its defects; here they are joined. Their grey values tell the kind of
    defect, which matters to the authors' own metric (sPRO) only.
    """

    name = "mvtec_loco"
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-loco"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = (
        Archive(
            "mvtec_loco_anomaly_detection.tar.xz",
            about="about 6 GB",
            sha256="9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
        ),
    )
    TREE = "pushpins/test/logical_anomalies/000.png"
    SPLITS = {"train": "train", "validation": "validation", "test": "test"}  # noqa: RUF012 - a constant
    MARKS = ("test/logical_anomalies", "test/structural_anomalies")
    # As in the archive; the paper has 354 and 59 splicing connectors to train and validate on.
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {
            "breakfast_box": (351, 0),
            "juice_bottle": (335, 0),
            "pushpins": (372, 0),
            "screw_bag": (360, 0),
            "splicing_connectors": (360, 0),
        },
        "validation": {
            "breakfast_box": (62, 0),
            "juice_bottle": (54, 0),
            "pushpins": (69, 0),
            "screw_bag": (60, 0),
            "splicing_connectors": (60, 0),
        },
        "test": {
            "breakfast_box": (102, 83 + 90),
            "juice_bottle": (94, 142 + 94),
            "pushpins": (138, 91 + 81),
            "screw_bag": (122, 137 + 82),
            "splicing_connectors": (119, 108 + 85),
        },
    }
