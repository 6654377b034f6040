"""CVC-ClinicDB (Bernal et al., CMIG 2015): polyps in the colon, frames of 29 sequences."""

import pathlib

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing
from zsad_jax.data.builders.paired_folders import (
    IMAGES_AND_MASKS,
    FolderPair,
    has_pair,
    is_called,
    list_anomalous,
)

OFFICIAL: FolderPair = (("Original",), ("Ground Truth", "GroundTruth", "Ground_Truth"))
EITHER: FolderPair = ((*OFFICIAL[0], *IMAGES_AND_MASKS[0]), (*OFFICIAL[1], *IMAGES_AND_MASKS[1]))


class CvcClinicdb(Benchmark):
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
    COUNTS = {"test": {"cvc_clinicdb": (0, 612)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the official folders, or images and masks under the set's name."""
        named = is_called(folder, r"(cvc[-_ ]?)?clinic[-_ ]?db.*|cvc[-_ ]?612.*")
        return has_pair(folder, OFFICIAL) or (named and cls.is_given(folder))

    @classmethod
    def is_given(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds frames and masks, however they are called."""
        return has_pair(folder, EITHER)

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All frames with their masks: of the same names, or `3_fram.jpg` with `3_mask.jpg`."""
        return list_anomalous(
            root, {"test": EITHER}, image_suffix="_fram", category=cls.name, defect="polyp"
        )
