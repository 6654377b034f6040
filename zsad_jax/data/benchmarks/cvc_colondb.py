"""CVC-ColonDB (Bernal et al., Pattern Recognition 2012): polyps in the colon, frames of 15 sequences."""

import pathlib
import re
from collections import defaultdict

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, list_images, pair
from zsad_jax.data.benchmarks.paired_folders import (
    IMAGES_AND_MASKS,
    has_pair,
    is_called,
    list_anomalous,
    sort_by_number,
)

FRAME, MASK = "", "p"


class CvcColondb(Benchmark):
    """Colonoscopy, a polyp in every frame."""

    name = "cvc_colondb"
    HOMEPAGE = "http://vi.cvc.uab.es/colon-qa/cvccolondb/"
    LICENCE = "research use, cite Bernal et al. 2012"
    ARCHIVES = (Archive("CVC-ColonDB.zip", about="380 frames with masks"),)
    TERMS = "its authors give it on request"
    TREE = "1.tiff beside p1.tiff, or CVC-ColonDB/images and CVC-ColonDB/masks"
    LEFT_OUT = ("cp[0-9]*.tif*",)  # contours
    COUNTS = {"test": {"cvc_colondb": (0, 380)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the official files, or images and masks under the set's name."""
        named = is_called(folder, r"(cvc[-_ ]?)?colon[-_ ]?db.*")
        return _is_official(folder) or (named and cls.is_given(folder))

    @classmethod
    def is_given(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the official files, or images and masks."""
        return _is_official(folder) or has_pair(folder, IMAGES_AND_MASKS)

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All frames with their masks, in the order of their numbers."""
        fields = {"category": cls.name, "defect": "polyp"}
        if not _is_official(root):
            return list_anomalous(root, {"test": IMAGES_AND_MASKS}, **fields)
        listing = Listing()
        files = _sort_out(root)
        masks: dict[str, list[pathlib.Path]] = defaultdict(list)
        for path in files[MASK]:
            masks[path.stem[len(MASK) :]].append(path)
        listing.add(
            "test", pair(root, sort_by_number(files[FRAME]), masks, listing.issues, **fields)
        )
        return listing


def _is_official(folder: pathlib.Path) -> bool:
    """Whether there is a frame with a mask beside it."""
    files = _sort_out(folder)
    numbers = {path.stem for path in files[FRAME]}
    return any(path.stem[len(MASK) :] in numbers for path in files[MASK])


def _sort_out(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The images of a folder by their kind: frame `7.tiff`, mask `p7.tiff`."""
    files: dict[str, list[pathlib.Path]] = defaultdict(list)
    for path in list_images(folder):
        match = re.fullmatch(r"(p|)\d+", path.stem, re.IGNORECASE)
        if match:
            files[match[1].lower()].append(path)
    return files
