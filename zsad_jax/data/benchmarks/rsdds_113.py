"""RSDDs-113: photographs of rails, with masks in the folder of another archive."""

import pathlib

from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Listing, find_inner_folder


def _is_root(folder: pathlib.Path) -> bool:
    return bool(_find_images(folder) and find_inner_folder(folder, "Ground Truth"))


def list_files(root: pathlib.Path) -> Listing:
    """Lists all images with their masks."""
    listing = Listing(root)
    images = _find_images(root) or root / "2D_Image"
    masks = find_inner_folder(root, "Ground Truth") or root / "Ground Truth"
    listing.add("test", listing.masked(images, masks, category="rsdds_113"))
    return listing


def _find_images(root: pathlib.Path) -> pathlib.Path | None:
    """Finds the folder of images, which the archive of the depth maps does not have."""
    return find_inner_folder(find_inner_folder(root, "2D_Image") or root, "INPUT_IMG")


LAYOUT = Layout(_is_root, list_files)
