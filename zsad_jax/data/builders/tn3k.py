"""TN3K (Gong et al., ISBI 2021): nodules of the thyroid in ultrasound."""

import pathlib

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing
from zsad_jax.data.builders.paired_folders import FolderPair, has_pair, list_anomalous

SPLITS: dict[str, FolderPair] = {
    "train": (("trainval-image",), ("trainval-mask",)),
    "test": (("test-image",), ("test-mask",)),
}


class Tn3k(Benchmark):
    """Ultrasound, a nodule in every image, of train as of test. Masks are JPEGs with a rim of noise."""

    name = "tn3k"
    HOMEPAGE = "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation"
    LICENCE = "no licence stated"
    ARCHIVES = (Archive("Thyroid Dataset.zip", about="3493 images with masks"),)
    TERMS = "Google Drive and Baidu hand it to browsers only"
    TREE = "tn3k/test-image/0000.jpg and tn3k/test-mask/0000.jpg"
    COUNTS = {"train": {"tn3k": (0, 2879)}, "test": {"tn3k": (0, 614)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the test images and their masks."""
        return has_pair(folder, SPLITS["test"])

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images with their masks, which have the same names."""
        return list_anomalous(root, SPLITS, category=cls.name, defect="nodule")
