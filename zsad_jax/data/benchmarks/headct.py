"""HeadCT: numbered slices with a table of labels."""

import csv
import pathlib

from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Listing, list_images
from zsad_jax.data.issues import Issue

LABELS = "labels.csv"
COLUMNS = ["id", "hemorrhage"]
DEFECTS = {"0": "good", "1": "hemorrhage"}


def _is_root(folder: pathlib.Path) -> bool:
    rows = _read_rows(folder / LABELS)
    return bool(rows) and rows[0] == COLUMNS and bool(_find_images(folder))


def list_files(root: pathlib.Path) -> Listing:
    """Lists the images with the labels of the table."""
    listing = Listing(root)
    # The official table has spaces after its commas and ids without leading zeros: 7 is 007.png.
    labels = {}
    for row in _read_rows(root / LABELS)[1:]:
        if len(row) == 2 and row[0].isdecimal() and row[1] in DEFECTS:
            labels[int(row[0])] = row[1]
        elif any(row):
            listing.issues.append(Issue("entry_invalid", LABELS, f"row {','.join(row)!r}"))
    for path in _find_images(root):
        label = labels.pop(int(path.stem), None) if path.stem.isdecimal() else None
        if label is None:
            listing.report("image_unlisted", path, LABELS)
            continue
        fields = {"category": "headct", "defect": DEFECTS[label]}
        listing.add("test", [listing.sample(path, label=int(label), **fields)])
    listing.issues += [Issue("image_missing", f"{number:03}", LABELS) for number in labels]
    return listing


def _read_rows(path: pathlib.Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        return [[value.strip() for value in row] for row in csv.reader(file)]


def _find_images(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the images of the outermost folder that has some with a number; the archive nests it twice."""
    for folder in (root, root / "head_ct", root / "head_ct" / "head_ct"):
        images = list_images(folder)
        if any(path.stem.isdecimal() for path in images):
            return images
    return []


LAYOUT = Layout(_is_root, list_files)
