"""Sets of anomalous images only that consist of two folders: one of images, one of their masks."""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from zsad_jax.data.benchmarks.base import Benchmark
from zsad_jax.data.benchmarks.layouts import (
    Listing,
    find_folder,
    list_folders,
    list_images,
    masks_by_stem,
    pair,
)

# Names of the folder of images and of that of their masks, those preferred first.
FolderPair = tuple[Sequence[str], Sequence[str]]

IMAGES_AND_MASKS: FolderPair = (("images", "image"), ("masks", "mask"))


class PairedFolders(Benchmark, skip_registration=True):
    """A folder of images beside one of their masks, and no normal images.

    Attributes:
      FOLDERS: the names of the two folders, per split.
      CALLED: what the folder above them is called (a regular expression), where nothing else tells the
        benchmark from others; a folder that is given outright may be called anything.
      MASK_SUFFIX, IMAGE_SUFFIX: what stems may have after that which an image and its mask share.
      DEFECT: what all images show.
    """

    FOLDERS: ClassVar[Mapping[str, FolderPair]] = {"test": IMAGES_AND_MASKS}
    CALLED: ClassVar[str] = ""
    MASK_SUFFIX: ClassVar[str] = "_mask"
    IMAGE_SUFFIX: ClassVar[str] = ""
    DEFECT: ClassVar[str]

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds images and masks, and has the benchmark's name where that is needed."""
        return cls.is_given(folder) and (not cls.CALLED or is_called(folder, cls.CALLED))

    @classmethod
    def is_given(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds images and masks, whatever it is called."""
        return has_pair(folder, cls.FOLDERS["test"])

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images with their masks."""
        return list_anomalous(
            root,
            cls.FOLDERS,
            image_suffix=cls.IMAGE_SUFFIX,
            mask_suffix=cls.MASK_SUFFIX,
            category=cls.name,
            defect=cls.DEFECT,
        )


def has_pair(folder: pathlib.Path, names: FolderPair) -> bool:
    """Whether a folder has one of images and one of masks, directly below it."""
    return all(find_folder(folder, *either) is not None for either in names)


def is_called(folder: pathlib.Path, pattern: str) -> bool:
    """Whether the name of a folder is of a form: what tells benchmarks of one layout apart."""
    name = os.path.basename(os.path.abspath(folder))
    return re.fullmatch(pattern, name, re.IGNORECASE) is not None


def list_anomalous(
    root: pathlib.Path,
    splits: Mapping[str, FolderPair],
    *,
    image_suffix: str = "",
    mask_suffix: str = "_mask",
    **fields: Any,
) -> Listing:
    """Reads a benchmark of anomalous images only: a folder of images and one of their masks.

    Images lie in the folder or in those directly below it; they are sorted by the numbers in their names.

    Args:
      root: the folder that holds both.
      splits: the names of the two folders, per split; a split without a folder of images is left out.
      image_suffix, mask_suffix: what stems may have after that which an image and its mask share.
      fields: further fields of the samples, as category and defect.
    """
    listing = Listing()
    for split, names in splits.items():
        images, masks = (find_folder(root, *either) for either in names)
        if images is None:
            continue
        paths = [path for one in (images, *list_folders(images)) for path in list_images(one)]
        by_stem = masks_by_stem(masks, mask_suffix) if masks else {}
        issues = listing.issues
        found = pair(
            root, sort_by_number(paths), by_stem, issues, image_suffix=image_suffix, **fields
        )
        listing.add(split, found)
    return listing


def sort_by_number(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Sorts files by name, numbers in it by their value: 2 before 10."""
    return sorted(
        paths, key=lambda path: (re.sub(r"\d+", lambda n: n[0].zfill(12), path.name), path)
    )
