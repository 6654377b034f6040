"""DAGM 2007: textures; an image is anomalous where it has a label."""

import pathlib
import re

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Listing, find_inner_folder, list_images, masks_by_stem
from zsad_jax.data.dataset import Sample

LABEL = "_label"


def _is_root(folder: pathlib.Path) -> bool:
    return any(find_inner_folder(folder / name, "Test") for name in DATASETS["dagm"].categories)


def list_files(root: pathlib.Path) -> Listing:
    """Lists all textures, the normal images first."""
    listing = Listing(root)
    for category in DATASETS["dagm"].categories:
        for split in ("train", "test"):
            folder = find_inner_folder(root / category, split)
            if folder is not None:
                listing.add(split, _list_split(listing, folder, category))
    return listing


def _list_split(listing: Listing, folder: pathlib.Path, category: str) -> list[Sample]:
    labels = find_inner_folder(folder, "Label") or folder / "Label"
    masks = masks_by_stem(labels, LABEL)
    # An image that the text file names is anomalous even if its label image is missing.
    anomalous = set(masks) | _read_labels(labels)
    # Normal and defective images share a folder; only labels distinguish them.
    normal = [
        sample
        for sample in listing.unmasked(folder, label=0, category=category, defect="good")
        if pathlib.Path(sample.file_name).stem not in anomalous
    ]
    defective = [path for path in list_images(folder) if path.stem in anomalous]
    return normal + listing.pair(defective, masks, category=category)


def _read_labels(labels: pathlib.Path) -> set[str]:
    """Returns the stems of the images that the text file of the labels names, if there is one."""
    return {
        stem
        for path in labels.glob("*.txt")
        for stem in re.findall(rf"(\w+){LABEL}\b", path.read_text(errors="replace"))
    }


LAYOUT = Layout(_is_root, list_files)
