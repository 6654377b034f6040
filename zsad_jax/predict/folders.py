"""Category and threshold of each image, by its folder."""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from zsad_jax.predict.thresholds import parse_number
from zsad_jax.utils.errors import UserError, suggest

COLUMNS = ("folder", "category", "threshold")


class Folder(NamedTuple):
    """The category of the images in a folder, and their own threshold, if they have one."""

    category: str
    threshold: float | None = None


OBJECT = Folder("object")


@dataclasses.dataclass(frozen=True)
class Folders:
    """The images' category, and the folders with a category of their own, by real path."""

    default: Folder = OBJECT
    listed: Mapping[str, Folder] = dataclasses.field(default_factory=dict)

    def of(self, image: str) -> Folder:
        """Returns the entry of the innermost listed folder that contains an image."""
        place = pathlib.Path(os.path.realpath(os.path.dirname(image)))
        inside = (self.listed.get(str(one)) for one in (place, *place.parents))
        return next((one for one in inside if one), self.default)

    @property
    def categories(self) -> tuple[str, ...]:
        """The different categories."""
        return tuple(dict.fromkeys(one.category for one in (self.default, *self.listed.values())))


def read_folders(path: str, category: str) -> Folders:
    """Reads a CSV file with the columns folder, category and, optionally, threshold.

    Args:
      path: the file. Its folders are relative to the one that contains it.
      category: of images in none of the folders, and in rows without one.

    Raises:
      UserError: the file cannot be read, or an entry of it is not valid.
    """

    def reject(wrong: str, remedy: str) -> UserError:
        return UserError(f"{path} is not a valid table of folders: {wrong}. {remedy}")

    try:
        # Spreadsheets write the byte order mark, and semicolons where a comma is the decimal sign.
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        delimiter = ";" if ";" in text.partition("\n")[0] else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        head, rows = reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise reject(str(error), "Give a CSV file in UTF-8.") from error
    if unknown := [name for name in head if name not in COLUMNS]:
        raise reject(f"unknown column {unknown[0]!r}", suggest(unknown[0], COLUMNS))
    if not {"folder", "category"} <= {*head}:
        raise reject("it has no columns 'folder' and 'category'", "Name them in the first line.")
    listed: dict[str, Folder] = {}
    for number, row in rows:
        if None in row:
            raise reject(f"line {number} has more cells than columns", "Quote cells with commas.")
        values = {name: (row[name] or "").strip() for name in head}
        place = os.path.realpath(pathlib.Path(path).parent / values["folder"])
        threshold = values.get("threshold", "")
        at = f"line {number}"
        if not values["folder"] or not os.path.isdir(place):
            raise reject(f"{at}: {values['folder']!r} is not a folder", "Correct the line.")
        if place in listed:
            raise reject(f"{at}: {values['folder']!r} is listed twice", "Remove one of the lines.")
        if threshold and parse_number(threshold) is None:
            raise reject(f"{at}: the threshold {threshold!r} is not a number", "Correct the line.")
        listed[place] = Folder(values["category"] or category, parse_number(threshold))
    return Folders(Folder(category), listed)
