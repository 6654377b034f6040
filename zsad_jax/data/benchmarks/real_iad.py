"""Real-IAD: objects photographed from five sides, in the split of its authors for all sides together.

`subject` is the object ("NG/BX/S0001": numbers start again in each folder), `slice` the side, from 1. A side
that does not show the defect of its object has no mask and is normal, as the authors count it.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.layouts import Layout, has_pair
from zsad_jax.data.benchmarks.listing import Listing, find_inner_folder
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError

JSONS = "realiad_jsons"
# The largest first; the original photographs (0.6 TB) only where there are no others.
IMAGES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
PARTS = ((JSONS,), IMAGES)


def _is_root(folder: pathlib.Path) -> bool:
    return has_pair(folder, PARTS)


def excluded(root: pathlib.Path) -> tuple[str, ...]:
    """Returns the images at the sizes that are not read."""
    found = find_inner_folder(root, *IMAGES)
    read = found.relative_to(root).as_posix().lower() if found else ""
    return tuple(one for one in IMAGES if one not in read)


def list_files(root: pathlib.Path) -> Listing:
    """Lists the images that the split names, at the largest available size."""
    split, images = (find_inner_folder(root, *either) for either in PARTS)
    listing = Listing(root)
    if split is None or images is None:
        return listing
    for category in DATASETS["real_iad"].categories:
        path, folder = split / f"{category}.json", images / category
        if path.is_file() and folder.is_dir():
            _list_category(listing, path, images)
        elif path.is_file():
            listing.report("folder_missing", path)
        elif folder.is_dir():
            listing.report("list_missing", folder)
    return listing


def _list_category(listing: Listing, path: pathlib.Path, images: pathlib.Path) -> None:
    """Adds the images of a category, and reports where its json and its folder disagree."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        meta = content.get("meta", {})
        prefix, normal = meta.get("prefix", path.stem), meta.get("normal_class", "OK")
        for split in ("train", "test"):
            samples = []
            for entry in content[split]:
                sample = _read_entry(listing, entry, images / prefix, normal, path.stem)
                if not (listing.root / sample.file_name).is_file():
                    listing.issues.append(Issue("image_missing", sample.file_name))
                    continue
                if not sample.has_mask:
                    listing.issues.append(Issue("mask_missing", sample.file_name))
                samples.append(sample)
            listing.add(split, sorted(samples, key=lambda sample: sample.file_name))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path} is not a split of Real-IAD ({error!r}). Expected "meta", "train" and "test" with entries'
            ' of "anomaly_class", "image_path" and "mask_path". Extract the official file again.'
        ) from error


def _read_entry(
    listing: Listing, entry: Mapping[str, Any], folder: pathlib.Path, normal: str, category: str
) -> Sample:
    image, kind = folder / entry["image_path"], entry["anomaly_class"]
    mask = None
    if kind != normal and entry.get("mask_path"):
        mask = folder / entry["mask_path"]
        listing.name(mask)  # raises a ValueError for a path outside the root
    has_mask = mask is None or mask.is_file()
    side = re.search(r"_C(\d+)_", image.name)
    return listing.sample(
        image,
        mask=str(mask) if mask and has_mask else None,
        has_mask=has_mask,
        label=int(mask is not None),
        category=category,
        defect=kind if mask else "good",
        subject=image.parent.relative_to(folder).as_posix(),
        slice=int(side[1]) if side else -1,
    )


LAYOUT = Layout(_is_root, list_files, excluded=excluded)
