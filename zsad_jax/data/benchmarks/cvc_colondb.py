"""CVC-ColonDB: frames and masks in one folder, or the two folders of a copy."""

import pathlib
from collections import defaultdict

from zsad_jax.data.benchmarks.facts import PairedFolders
from zsad_jax.data.benchmarks.layouts import Layout, paired_folders
from zsad_jax.data.benchmarks.listing import Listing, list_images, sort_by_number

COPY = paired_folders(
    "cvc_colondb", PairedFolders(parent=r"(cvc[-_ ]?)?colon[-_ ]?db.*", defect="polyp")
)


def _is_root(folder: pathlib.Path) -> bool:
    return _is_official(folder) or COPY.is_root(folder)


def _is_given(folder: pathlib.Path) -> bool:
    return _is_official(folder) or COPY.accepts(folder)


def list_files(root: pathlib.Path) -> Listing:
    """Lists all frames with their masks, in the order of their numbers."""
    if not _is_official(root):
        return COPY.list_files(root)
    listing = Listing(root)
    frames, masks = _find_pairs(root)
    found = listing.pair(sort_by_number(frames), masks, category="cvc_colondb", defect="polyp")
    listing.add("test", found)
    return listing


def _is_official(folder: pathlib.Path) -> bool:
    frames, masks = _find_pairs(folder)
    return any(path.stem in masks for path in frames)


def _find_pairs(folder: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, list[pathlib.Path]]]:
    """Returns the frames (`7.tiff`) of a folder, and their masks (`p7.tiff`) by the stem of the frame."""
    frames: list[pathlib.Path] = []
    masks: dict[str, list[pathlib.Path]] = defaultdict(list)
    # By stem, since frames 77 to 97 are .tif and their masks .tiff. `cp7.tiff`, a contour, is neither.
    for path in list_images(folder):
        if path.stem.isdecimal():
            frames.append(path)
        elif path.stem[:1] in ("p", "P") and path.stem[1:].isdecimal():
            masks[path.stem[1:]].append(path)
    return frames, masks


LAYOUT = Layout(_is_root, list_files, _is_given)
