"""Category and threshold of each image, by its folder."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from zsad_jax.data.walk import list_folders
from zsad_jax.utils.config import check_fields, config_from, fits
from zsad_jax.utils.errors import UserError, did_you_mean, located, nearest
from zsad_jax.utils.records import parse_json

EXAMPLE = (
    '{"nuts": {"category": "metal nut", "threshold": 1.1}, "cables/red": {"category": "cable"}}'
)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The category of the images in a folder, and their own threshold, if any."""

    category: str = "object"
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.category.strip():
            raise UserError("The category is empty. Name what is shown, such as 'metal nut'.")


@dataclasses.dataclass(frozen=True)
class Folders:
    """The entry of all images, and those of listed folders by real path."""

    default: Folder = Folder()
    listed: Mapping[str, Folder] = dataclasses.field(default_factory=dict)

    def of(self, image: str) -> Folder:
        """Returns the entry of the innermost listed folder that contains an image."""
        if not self.listed:  # not asked of the file system for each of many images
            return self.default
        place = pathlib.Path(os.path.realpath(os.path.dirname(image)))
        inside = (self.listed.get(str(one)) for one in (place, *place.parents))
        return next((one for one in inside if one), self.default)

    @functools.cached_property
    def categories(self) -> tuple[str, ...]:
        """The different categories."""
        return tuple(dict.fromkeys(one.category for one in (self.default, *self.listed.values())))


def read_folders(path: str, default: Folder) -> Folders:
    """Reads a JSON file of folders, relative to its own, and their entries; see `EXAMPLE`.

    `default` is the entry of all other images. Raises `UserError` if something in the file is not valid.
    """
    listed: dict[str, Folder] = {}
    mistakes = []
    try:
        entries = parse_json(pathlib.Path(path).read_bytes()).items()
    except UnicodeDecodeError:
        entries, mistakes = (), ["The file is not UTF-8. Save it as UTF-8."]
    except (OSError, ValueError, AttributeError) as error:  # the last: it is not a mapping
        entries, mistakes = (), [f"{error}."]
    for name, entry in entries:
        try:
            place = os.path.realpath(pathlib.Path(path).parent / name)
            if not os.path.isdir(place):
                mistakes.append(_describe_missing(pathlib.Path(path).parent, name))
            if place in listed:
                mistakes.append(f"{name!r} is listed twice.")
            listed[place] = _read_entry(name, entry, default)
        except (UserError, ValueError) as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError(
            f"Cannot read the folders in {path}. {' '.join(mistakes)} Expected JSON such as {EXAMPLE}, with"
            " folders relative to the file and / in their names."
        )
    return Folders(default, listed)


def _describe_missing(parent: pathlib.Path, name: str) -> str:
    """Returns that a listed folder does not exist, with the names of similar ones."""
    meant = parent / name.replace("\\", "/")
    known = [os.path.relpath(one, parent) for one in list_folders(meant.parent)]
    near = did_you_mean(nearest(os.path.relpath(meant, parent), known))
    return f"There is no folder {parent / name}." + f" {near}" * bool(near)


def _read_entry(name: str, entry: Any, default: Folder) -> Folder:
    with located(name):
        if not isinstance(entry, dict):
            raise UserError(f"{json.dumps(entry)} is not a mapping.")
        threshold = entry.get("threshold")
        if not fits(threshold, float | None):
            raise UserError(f'"threshold" is {json.dumps(threshold)}. Expected a number, unquoted.')
        return config_from(Folder, {"category": default.category} | entry)
