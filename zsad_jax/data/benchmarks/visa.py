"""VisA: the one-class split of its authors, or a copy that their program has repacked in MVTec's layout."""

import csv
import dataclasses
import pathlib

from zsad_jax.data.benchmarks.facts import MvtecLayout
from zsad_jax.data.benchmarks.layouts import Layout, mvtec_layout
from zsad_jax.data.benchmarks.listing import Listing
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError

SPLIT_FILE = "split_csv/1cls.csv"
REPACKED = mvtec_layout("visa", MvtecLayout(marks=("test/bad",)))


def _is_root(folder: pathlib.Path) -> bool:
    return _is_official(folder) or REPACKED.is_root(folder)


def list_files(root: pathlib.Path) -> Listing:
    """Lists the images of the official split in its order, or those of a repacked copy by folder."""
    if not _is_official(root):
        listing = REPACKED.list_files(root)
        for samples in listing.samples.values():
            # The folder `bad` says that an image is anomalous, not which defect it has.
            samples[:] = [
                dataclasses.replace(one, defect="") if one.label else one for one in samples
            ]
        return listing
    listing = Listing(root)
    # Folders only separate normal and anomalous images: the split is in this file alone.
    with open(root / SPLIT_FILE, newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            sample = _read_row(listing, row)
            if not (root / row["image"]).is_file():
                listing.issues.append(Issue("image_missing", row["image"]))
                continue
            if sample.label and not sample.has_mask:
                listing.issues.append(Issue("mask_missing", row["image"]))
            listing.add(row["split"], [sample])
    return listing


def _is_official(folder: pathlib.Path) -> bool:
    return (folder / SPLIT_FILE).is_file() and any(folder.glob("*/Data/Images"))


def _read_row(listing: Listing, row: dict[str, str]) -> Sample:
    root = listing.root
    try:
        image, mask, label = row["image"], row["mask"], row["label"]
        category, _ = row["object"], row["split"]
        anomalous = {"normal": 0, "anomaly": 1}[label]
    except KeyError as error:
        raise UserError(
            f"{root / SPLIT_FILE} is not the official split of VisA ({error} is unexpected or missing)."
            " Expected the columns object, split, label, image and mask. Extract the official archive again."
        ) from error
    has_mask = bool(mask) and (root / mask).is_file()
    return listing.sample(
        root / image,
        mask=str(root / mask) if has_mask else None,
        has_mask=has_mask or not anomalous,
        label=anomalous,
        category=category,
        defect="" if anomalous else "good",
    )


LAYOUT = Layout(_is_root, list_files, excluded=REPACKED.excluded)
