"""CVC-ClinicDB (Bernal et al., CMIG 2015): polyps in the colon, frames of 29 sequences."""

import pathlib

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.paired_folders import (
    IMAGES_AND_MASKS,
    FolderPair,
    PairedFolders,
    has_pair,
)

OFFICIAL: FolderPair = (("Original",), ("Ground Truth", "GroundTruth", "Ground_Truth"))
EITHER: FolderPair = ((*OFFICIAL[0], *IMAGES_AND_MASKS[0]), (*OFFICIAL[1], *IMAGES_AND_MASKS[1]))


class CvcClinicdb(PairedFolders):
    """Colonoscopy, a polyp in every frame.

    A copy that holds every frame twice, as TIFF and as PNG, is read once: PNG, the first folder by name.
    """

    name = "cvc_clinicdb"
    HOMEPAGE = "https://polyp.grand-challenge.org/CVCClinicDB/"
    LICENCE = "research use, cite Bernal et al. 2015"
    ARCHIVES = (Archive("CVC-ClinicDB.rar", about="612 frames with masks"),)
    TERMS = "it is handed to browsers only"
    UNPACK = "7z x CVC-ClinicDB.rar"
    TREE = "Original/1.tif and Ground Truth/1.tif, or CVC-ClinicDB/images and CVC-ClinicDB/masks"
    FOLDERS = {"test": EITHER}  # noqa: RUF012 - a constant
    CALLED = r"(cvc[-_ ]?)?clinic[-_ ]?db.*|cvc[-_ ]?612.*"
    # `3_fram.jpg` with `3_mask.jpg` in a copy that is resized.
    IMAGE_SUFFIX = "_fram"
    DEFECT = "polyp"
    COUNTS = {"test": {"cvc_clinicdb": (0, 612)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the official folders, or images and masks under the set's name."""
        return has_pair(folder, OFFICIAL) or super().is_root(folder)
