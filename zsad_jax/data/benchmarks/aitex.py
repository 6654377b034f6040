"""AITEX: strips of woven fabric, in patches as InCTRL and FAPrompt test them."""

import dataclasses
import pathlib

from absl import logging

from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Box, Listing, find_inner_folder, list_folders
from zsad_jax.data.dataset import Sample

PATCH = 256  # pixels
DEFECTS = {
    "002": "Broken_end",
    "006": "Broken_yarn",
    "010": "Broken_pick",
    "016": "Weft_curling",
    "019": "Fuzzyball",
    "022": "Cut_selvage",
    "023": "Crease",
    "025": "Warp_ball",
    "027": "Knots",
    "029": "Contamination",
    "030": "Nep",
    "036": "Weft_crack",
}


def _is_root(folder: pathlib.Path) -> bool:
    return all(find_inner_folder(folder, name) for name in ("Defect_images", "NODefect_images"))


def list_files(root: pathlib.Path) -> Listing:
    """Lists the patches of all strips; masks are read, as only their pixels show which are defective."""
    listing = Listing(root)
    clean = find_inner_folder(root, "NODefect_images") or root
    normal = [
        patch
        for folder in (clean, *list_folders(clean))
        for strip in listing.unmasked(folder, label=0, category="aitex")
        for patch in listing.cut(strip, patches)
    ]
    defective = [
        patch for strip in _list_defective(listing) for patch in listing.cut(strip, patches)
    ]
    # The published 183 anomalous patches are those with a defect; clean ones of these strips are not normal
    # images.
    anomalous = [patch for patch in defective if patch.label]
    excluded = len(defective) - len(anomalous)
    logging.info("AITEX: excluded the defect-free patches of defective strips (%d).", excluded)
    listing.add_drawn(normal, anomalous)
    return listing


def _list_defective(listing: Listing) -> list[Sample]:
    """Lists the strips with a defect; the second number of a name is the code of its kind."""
    root = listing.root
    images = find_inner_folder(root, "Defect_images") or root
    masks = find_inner_folder(root, "Mask_images") or root / "Mask_images"
    strips = []
    # Two strips have two masks each (`_mask1`, `_mask2`), which are joined.
    for strip in listing.masked(images, masks, category="aitex"):
        code = [*pathlib.Path(strip.file_name).stem.split("_"), ""][1]
        strips.append(dataclasses.replace(strip, defect=DEFECTS.get(code, code)))
    return strips


def patches(size: tuple[int, int]) -> list[Box]:
    """Divides a strip of (width, height) pixels from left to right; the last patch may be narrower."""
    width, height = size
    return [(left, 0, min(left + PATCH, width), height) for left in range(0, width, PATCH)]


LAYOUT = Layout(_is_root, list_files)
