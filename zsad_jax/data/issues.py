"""Issues: records of problems with the files of a dataset, and their descriptions."""

import collections
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from absl import logging

from zsad_jax.utils.images import printable

FILES_SHOWN = 3
DETAILS_SHOWN = 5

# Code decides on the kinds; the descriptions are only shown.
DESCRIPTIONS = {
    "image_unreadable": "the image cannot be read",
    "image_missing": "the image is listed but does not exist",
    "images_missing": "none of the images of a split exists",
    "image_outside": "the image is outside the folder of the dataset",
    "image_repeated": "the file is a link to another one that is listed",
    "image_unlisted": "the image is not in the list of the dataset",
    "image_unused": "not part of the benchmark",
    "image_scaled": "the pixel values were scaled to 8 bits",
    "image_narrow": "the pixel values of a wider type were read as 8 bits",
    "image_stretched": "the pixel values were scaled to 8 bits from their own range; scores of different images"
    " are not comparable",
    "image_shallow": "the 16-bit values use 14 bits or fewer, so that the image is dark; if the camera has"
    " fewer than 16 bits, set `bit_depth` of the backbone, or --depth of predict",
    "image_gaps": "values that are not finite or mean no data were read as the lowest value",
    "image_pages": "the file has several pages or frames; the first is used",
    "image_turned": "the image was turned by its EXIF orientation; boxes and masks are of the turned image",
    "document": "the file is not an image",
    "format_unsupported": "the file format is not supported; convert it to PNG or JPEG",
    "hidden": "the file is hidden, or was left behind by an operating system or a NAS",
    "output_failed": "the outputs of the image cannot be written",
    "output": "the file was written by an earlier run",
    "mask_ignored": "the file looks like a ground-truth mask; to score it, pass its path or --include_masks",
    "image_beside": "the image is in none of the folders that are read",
    "mask_unreadable": "the mask cannot be read",
    "mask_missing": "the mask is missing",
    "mask_outside": "the mask is outside the folder of the dataset",
    "mask_unused": "the mask belongs to no image",
    "mask_of_other": "the mask has the name of another image; its image is excluded from pixel metrics",
    "mask_of_normal": "the image is normal but has a mask; the mask is ignored",
    "mask_size": "the mask differs in size from the image, which is excluded from pixel metrics",
    "mask_resized": "the mask differs in size from the image, with the same aspect ratio",
    "mask_orientation": "the image and its mask differ in EXIF orientation; the image is excluded from pixel"
    " metrics",
    "mask_turned": "the mask was turned by the EXIF orientation of its image",
    "mask_empty": "the image is anomalous, but its mask is empty",
    "mask_full": "the mask covers the whole image",
    "mask_inverted": "the mask covers most of the image and its border; it may be inverted",
    "mask_pages": "the mask has several pages or frames; the first is used",
    "mask_levels": "the mask has more than two gray levels; all above the threshold count as anomalous",
    "masks_missing": "there are no masks; the anomalous images are excluded from pixel metrics",
    "label_unknown": "normal and anomalous images cannot be distinguished: no folder of normal images and no"
    " masks; set `normal_folders`",
    "entry_contradicts": "the list contradicts itself; the first entry of the image is used",
    "entry_invalid": "the list has an invalid entry",
    "entries_repeated": "repeated entries of an image are ignored",
    "folder_empty": "the folder has no images",
    "folder_unreadable": "the folder cannot be read",
    "folder_missing": "the folder of its images does not exist",
    "list_missing": "the list of its images does not exist",
    "record_unreadable": "the record cannot be read",
}

SCALED = ("image_scaled", "image_narrow", "image_stretched")
UNREADABLE = ("image_unreadable", "record_unreadable")
# Notes that are logged as warnings and stored with the results: the file is used, but perhaps wrongly.
DOUBTFUL = (
    *("image_narrow", "image_stretched", "image_shallow", "image_gaps", "image_pages"),
    *("mask_empty", "mask_full", "mask_inverted", "mask_turned", "mask_resized", "mask_pages"),
)


class Issue(NamedTuple):
    """A problem with a file or a folder, or a note on it.

    Attributes:
      kind: a key of `DESCRIPTIONS`.
      file: its path, relative to the dataset's root where there is one; "." for the whole dataset.
      detail: the values concerned, for people; "" for none.
    """

    kind: str
    file: str
    detail: str = ""

    @property
    def description(self) -> str:
        """The description of the kind, with the detail."""
        return DESCRIPTIONS[self.kind] + (f" ({self.detail})" if self.detail else "")

    def __str__(self) -> str:
        # The name of a dataset stands before issues of the whole of it.
        before = "" if self.file == "." else f"{printable(self.file)}: "
        return before + self.description


def merge_issues(found: Iterable[Iterable[Issue]]) -> tuple[Issue, ...]:
    """Joins issues, each once: splits of one prepared benchmark repeat those of the preparation."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(found)))


def group_issues(issues: Iterable[Issue]) -> list[list[Issue]]:
    """Groups issues by kind, in order of first appearance."""
    kinds: dict[str, list[Issue]] = {}
    for issue in issues:
        kinds.setdefault(issue.kind, []).append(issue)
    return list(kinds.values())


def log_issues(name: str, issues: Iterable[Issue]) -> None:
    """Logs issues of a dataset as warnings, a line for each kind."""
    for kind in group_issues(issues):
        logging.warning("%s: %s", name, summarize_issues(kind))


def issues_to_json(issues: Iterable[Issue]) -> list[dict[str, str]]:
    """Returns issues as they are stored in run.json."""
    return [issue._asdict() for issue in issues]


def summarize_issues(issues: Sequence[Issue]) -> str:
    """Describes the issues of one kind in a line: their number, and the first few files."""
    if len(issues) == 1:
        return str(issues[0])
    details = collections.Counter(issue.detail for issue in issues)
    same = len(details) < len(issues) and len(details) <= DETAILS_SHOWN
    description = issues[0].description if len(details) == 1 else DESCRIPTIONS[issues[0].kind]
    if same and len(details) > 1:
        counted = (f"{detail} ({number})" for detail, number in details.most_common() if detail)
        description += f": {', '.join(counted)}"
    shown = [
        printable(issue.file if same or not issue.detail else f"{issue.file}: {issue.detail}")
        for issue in issues[:FILES_SHOWN]
    ]
    more = ["…"] * (len(issues) > FILES_SHOWN)
    return f"{len(issues)} files: {description} ({', '.join([*shown, *more])})"
