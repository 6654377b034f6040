"""HeadCT (Kitamura, 2018): slices of head CT, half of them with a hemorrhage."""

import csv
import pathlib

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, list_images, name_in
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue

LABELS = "labels.csv"
COLUMNS = ["id", "hemorrhage"]
DEFECTS = {"0": "good", "1": "hemorrhage"}


class HeadCt(Benchmark):
    """Slices of head CT with and without hemorrhage, one a patient; no masks."""

    name = "headct"
    HOMEPAGE = "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage"
    LICENCE = "not stated"
    ARCHIVES = (Archive("head-ct-hemorrhage.zip", about="26 MB"),)
    TREE = f"{LABELS} and head_ct/head_ct/000.png"
    TERMS = "Kaggle asks for an account"
    COUNTS = {"test": {"headct": (100, 100)}}  # noqa: RUF012 - a constant, as tensorflow-datasets has them

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the table of hemorrhages and images."""
        rows = _read_rows(folder / LABELS)
        return bool(rows) and rows[0] == COLUMNS and bool(_find_images(folder))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """The images with the labels of the table."""
        listing = Listing()
        labels = {}
        for row in _read_rows(root / LABELS)[1:]:
            if len(row) == 2 and row[0].isdecimal() and row[1] in DEFECTS:
                labels[int(row[0])] = row[1]
            elif any(row):
                listing.issues.append(Issue("entry_invalid", LABELS, f"row {','.join(row)!r}"))
        for path in _find_images(root):
            label = labels.pop(int(path.stem), None) if path.stem.isdecimal() else None
            if label is None:
                listing.issues.append(Issue("image_unlisted", name_in(root, path), LABELS))
                continue
            sample = Sample(
                image=str(path),
                label=int(label),
                category=cls.name,
                defect=DEFECTS[label],
                file_name=name_in(root, path),
            )
            listing.add("test", [sample])
        for number in labels:
            listing.issues.append(Issue("image_missing", f"{number:03}", LABELS))
        return listing


def _read_rows(path: pathlib.Path) -> list[list[str]]:
    """The rows of a table, the header among them, without the blanks around the values."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        return [[value.strip() for value in row] for row in csv.reader(file)]


def _find_images(root: pathlib.Path) -> list[pathlib.Path]:
    """The images of the outermost folder that has some with a number; the archive nests it twice."""
    for folder in (root, root / "head_ct", root / "head_ct" / "head_ct"):
        images = list_images(folder)
        if any(path.stem.isdecimal() for path in images):
            return images
    return []
