"""Real-IAD (Wang et al., CVPR 2024): 30 objects, each photographed from five sides."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from zsad_jax.data.benchmarks.base import ALL, Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, find_folder, name_in
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError

JSONS = "realiad_jsons"
# The largest first; the original photographs (0.6 TB) only where there are no others.
IMAGES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
PARTS = ((JSONS,), IMAGES)


class RealIad(Benchmark):
    """Objects of many materials from five sides; the split of the authors for all sides together.

    `subject` is the object ("NG/BX/S0001": numbers start again in each folder), `slice` the side, from 1.
    A side that does not show the defect of its object has no mask and is normal, as the authors count it.
    """

    name = "real_iad"
    HOMEPAGE = "https://huggingface.co/datasets/Real-IAD/Real-IAD"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = (
        Archive(f"{JSONS}.zip", about="the split"),
        Archive(IMAGES[0], about="a folder with a zip for each category, 53 GB"),
    )
    TERMS = "access must be requested there"
    UNPACK = f"unzip {JSONS}.zip; for f in {IMAGES[0]}/*.zip; do unzip $f -d {IMAGES[0]}; done"
    TREE = f"{JSONS}/audiojack.json and {IMAGES[0]}/audiojack/OK/S0001"
    CATEGORIES = (
        *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint"),
        *("mounts", "pcb", "phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll"),
        *("regulator", "rolled_strip_base", "sim_card_set", "switch", "tape", "terminalblock"),
        *("toothbrush", "toy", "toy_brick", "transistor1", "u_block", "usb", "usb_adaptor"),
        *("vcpill", "wooden_beads", "woodstick", "zipper"),
    )
    # No more than the sums is published.
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {ALL: (36_465, 0)} | dict.fromkeys(CATEGORIES),
        "test": {ALL: (63_256, 51_329)} | dict.fromkeys(CATEGORIES),
    }

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the split and images of some size."""
        return all(find_folder(folder, *either) is not None for either in PARTS)

    @classmethod
    def left_out(cls, root: pathlib.Path) -> tuple[str, ...]:
        """The images at the sizes that are not read."""
        found = find_folder(root, *IMAGES)
        return tuple(one for one in IMAGES if not found or one not in name_in(root, found).lower())

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """The images that the split names, at the largest size that is there."""
        split, images = (find_folder(root, *either) for either in PARTS)
        listing = Listing()
        if split is None or images is None:
            return listing
        for category in cls.categories():
            path, folder = split / f"{category}.json", images / category
            if path.is_file() and folder.is_dir():
                _list_category(root, path, images, listing)
            elif path.is_file():
                listing.issues.append(Issue("folder_missing", name_in(root, path)))
            elif folder.is_dir():
                listing.issues.append(Issue("list_missing", name_in(root, folder)))
        return listing


def _list_category(
    root: pathlib.Path, path: pathlib.Path, images: pathlib.Path, listing: Listing
) -> None:
    """Adds the images of a category, and what of its json and its folder does not fit."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        meta = content.get("meta", {})
        prefix, normal = meta.get("prefix", path.stem), meta.get("normal_class", "OK")
        for split in ("train", "test"):
            samples = []
            for entry in content[split]:
                sample = _read_entry(entry, root, images / prefix, normal, path.stem)
                if not (root / sample.file_name).is_file():
                    listing.issues.append(Issue("image_missing", sample.file_name))
                    continue
                if not sample.has_mask:
                    listing.issues.append(Issue("mask_missing", sample.file_name))
                samples.append(sample)
            listing.add(split, sorted(samples, key=lambda sample: sample.file_name))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path} is not a split of Real-IAD ({error!r}): it should hold "meta", "train" and "test" with'
            ' entries of "anomaly_class", "image_path" and "mask_path"; extract the official one again.'
        ) from error


def _read_entry(
    entry: Mapping[str, Any],
    root: pathlib.Path,
    folder: pathlib.Path,
    normal: str,
    category: str,
) -> Sample:
    """A sample of the split."""
    image, kind = folder / entry["image_path"], entry["anomaly_class"]
    mask = None
    if kind != normal and entry.get("mask_path"):
        mask = root / name_in(root, folder / entry["mask_path"])  # below the root
    has_mask = mask is None or mask.is_file()
    side = re.search(r"_C(\d+)_", image.name)
    return Sample(
        image=str(image),
        mask=str(mask) if mask and has_mask else None,
        has_mask=has_mask,
        label=int(mask is not None),
        category=category,
        defect=kind if mask else "good",
        file_name=name_in(root, image),
        subject=image.parent.relative_to(folder).as_posix(),
        slice=int(side[1]) if side else -1,
    )
