"""CVC-ColonDB: frames with their masks beside them, or the folders of a copy."""

import pathlib
import re
from collections import defaultdict

from zsad_jax.data.benchmarks.facts import PairedFolders
from zsad_jax.data.benchmarks.layouts import Layout, paired_folders
from zsad_jax.data.benchmarks.listing import Listing, list_images, sort_by_number

FRAME, MASK = "", "p"
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
    files = _sort_out(root)
    masks: dict[str, list[pathlib.Path]] = defaultdict(list)
    for path in files[MASK]:
        masks[path.stem[len(MASK) :]].append(path)
    frames = sort_by_number(files[FRAME])
    listing.add("test", listing.pair(frames, masks, category="cvc_colondb", defect="polyp"))
    return listing


def _is_official(folder: pathlib.Path) -> bool:
    files = _sort_out(folder)
    numbers = {path.stem for path in files[FRAME]}
    return any(path.stem[len(MASK) :] in numbers for path in files[MASK])


def _sort_out(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the images of a folder by their kind: frame `7.tiff`, mask `p7.tiff`."""
    files: dict[str, list[pathlib.Path]] = defaultdict(list)
    for path in list_images(folder):
        match = re.fullmatch(r"(p|)\d+", path.stem, re.IGNORECASE)
        if match:
            files[match[1].lower()].append(path)
    return files


LAYOUT = Layout(_is_root, list_files, _is_given)
