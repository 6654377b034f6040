"""TN3K (Gong et al., ISBI 2021): nodules of the thyroid in ultrasound."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.paired_folders import PairedFolders


class Tn3k(PairedFolders):
    """Ultrasound, a nodule in every image, of train as of test. Masks are JPEGs with a rim of noise."""

    name = "tn3k"
    HOMEPAGE = "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation"
    LICENCE = "no licence stated"
    ARCHIVES = (Archive("Thyroid Dataset.zip", about="3493 images with masks"),)
    TERMS = "Google Drive and Baidu hand it to browsers only"
    TREE = "tn3k/test-image/0000.jpg and tn3k/test-mask/0000.jpg"
    FOLDERS = {  # noqa: RUF012 - a constant
        "train": (("trainval-image",), ("trainval-mask",)),
        "test": (("test-image",), ("test-mask",)),
    }
    DEFECT = "nodule"
    COUNTS = {"train": {"tn3k": (0, 2879)}, "test": {"tn3k": (0, 614)}}  # noqa: RUF012 - a constant
