"""Category and threshold of each image, by its folder."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

from zsad_jax.utils.config import check_fields, config_from
from zsad_jax.utils.errors import UserError

EXAMPLE = (
    '{"nuts": {"category": "metal nut", "threshold": 1.1}, "cables/red": {"category": "cable"}}'
)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The category of the images in a folder, and their own threshold, if they have one."""

    category: str = "object"
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.category.strip():
            raise UserError(
                "The category is empty. Name what the images show, such as 'metal nut'."
            )


@dataclasses.dataclass(frozen=True)
class Folders:
    """The entry of all images, and those of listed folders by real path."""

    default: Folder = Folder()
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


def read_folders(path: str, default: Folder) -> Folders:
    """Reads a JSON file of folders, relative to its own, and their entries; see `EXAMPLE`.

    `default` is the entry of all other images. Raises `UserError` if something in the file is not valid.
    """
    listed = {}
    try:
        for name, entry in json.loads(pathlib.Path(path).read_bytes()).items():
            place = os.path.realpath(pathlib.Path(path).parent / name)
            if not os.path.isdir(place) or place in listed:
                raise ValueError(f"{name!r} is not a folder, or is listed twice")
            listed[place] = config_from(Folder, {"category": default.category} | entry)
    # AttributeError and TypeError: there is something else in place of a mapping.
    except (OSError, ValueError, AttributeError, TypeError, UserError) as error:
        raise UserError(
            f"Cannot read the folders in {path} ({str(error).rstrip('.')}). Expected JSON such as {EXAMPLE}."
        ) from error
    return Folders(default, listed)
