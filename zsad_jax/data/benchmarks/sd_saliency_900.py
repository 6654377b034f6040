"""SD-saliency-900: strips of hot-rolled steel, as published or as TPS repacks them."""

import dataclasses
import pathlib

from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Listing, find_inner_folder, list_folders

KINDS = {"In": "inclusion", "Pa": "patches", "Sc": "scratches"}


def _is_root(folder: pathlib.Path) -> bool:
    return bool(_find_inner_folders(folder))


def list_files(root: pathlib.Path) -> Listing:
    """Lists all images with their masks; the name begins with the kind of defect."""
    listing = Listing(root)
    for images, masks in _find_inner_folders(root):
        for sample in listing.masked(images, masks, category="sd_saliency_900"):
            kind = pathlib.Path(sample.file_name).stem.split("_")[0]
            listing.add("test", [dataclasses.replace(sample, defect=KINDS.get(kind, ""))])
    return listing


def _find_inner_folders(root: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    images, masks = (
        find_inner_folder(root, "Source Images"),
        find_inner_folder(root, "Ground truth"),
    )
    if images and masks:
        return [(images, masks)]
    # TPS calls the only category of this set `iron`.
    repacked = root / "iron"
    return [
        (kind, repacked / "ground_truth" / kind.name) for kind in list_folders(repacked / "test")
    ]


LAYOUT = Layout(_is_root, list_files)
