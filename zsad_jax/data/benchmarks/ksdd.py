"""KolektorSDD: surfaces of electrical commutators, each image cut into three."""

import dataclasses
import itertools
import pathlib
import re

from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Box, Listing, list_folders, list_images

LABEL = "_label"


def _is_root(folder: pathlib.Path) -> bool:
    return any(folder.glob(f"kos*/Part*{LABEL}.*"))


def list_files(root: pathlib.Path) -> Listing:
    """Lists all parts of all images; labels are read, as only their pixels show which are defective."""
    listing = Listing(root)
    parts = []
    for folder in list_folders(root):
        if not re.fullmatch(r"kos\d+", folder.name):
            continue
        files = list_images(folder)
        labelled = [path for path in files if path.stem.endswith(LABEL)]
        labels = {path.stem.removesuffix(LABEL): [path] for path in labelled}
        images = [path for path in files if path not in labelled]
        for image in listing.pair(images, labels, category="ksdd"):
            # Every image has a label, also the normal ones: as anomalous, their empty masks would be issues.
            parts += listing.cut(dataclasses.replace(image, label=0), thirds)
    listing.add_drawn(
        [part for part in parts if not part.label], [part for part in parts if part.label]
    )
    return listing


def thirds(size: tuple[int, int]) -> list[Box]:
    """Divides an image of (width, height) pixels into three, from top to bottom."""
    width, height = size
    # The published 286 normal and 54 anomalous images are thirds of this kind.
    cuts = (0, height // 3, 2 * height // 3, height)
    return [(0, upper, width, lower) for upper, lower in itertools.pairwise(cuts)]


LAYOUT = Layout(_is_root, list_files)
