"""Masks in folders of images: recognition, and pairing with images by name."""

import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from zsad_jax.data.preprocess import UnreadableImage, read_masks
from zsad_jax.data.walk import plain
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

_WORDS = (
    r"(?:(?:anomaly|defect|binary|pixel|gt)_)?(?:masks?|labels?)|gt|ground_?truths?|segmentations?|segs?"
    r"|annotations?"
)
_PHOTO = r"images?|img|frame?|photo"  # "fram": a copy of CVC-ClinicDB
MASK = re.compile(rf"(.+?)(?:[_.](?:{_WORDS})|masks?)_?\d*|(?:{_WORDS})[_.]?(.+)")
IMAGE = re.compile(rf"(.+)[_.](?:{_PHOTO})|(?:{_PHOTO})[_.]?(.+)")
FOLDER = re.compile(r"ground_?truth|masks?")
# Some are names of defects, too ("label"), so the names and pixels of the files decide.
_LIKELY_FOLDER = re.compile(rf"({_WORDS})(_images?|_masks?)?")
# The most frequent values are 0.99 of a mask in public sets, JPEG too, and at most 0.67 of an image.
MAX_LEVELS, MIN_SHARE = 8, 0.95


def names(path: str, affix: re.Pattern[str]) -> tuple[str, str]:
    """Returns the `plain` path without suffix, and that without an affix (`IMAGE` or `MASK`) of the name."""
    folder, name = os.path.split(plain(os.path.splitext(path)[0]))
    match = affix.fullmatch(name)
    bare = (match[1] or match[2]) if match else name
    return os.path.join(folder, name), os.path.join(folder, bare)


def outermost_folder(file: str, name: re.Pattern[str]) -> str:
    """Returns the outermost folder of a file that has such a name, "" for none."""
    folders = file.split("/")[:-1]
    depth = next((i for i, one in enumerate(folders, 1) if name.fullmatch(plain(one))), 0)
    return "/".join(folders[:depth])


def find_masks(
    root: PathLike, files: Sequence[str], normal: Collection[str]
) -> tuple[dict[str, str | None], dict[str, str]]:
    """Finds the masks among the images of a folder.

    Masks are files in folders such as `ground_truth`, and those with names such as `000_mask.png` or
    `mask_000.png`, if there is a `000.png` or they have only a few gray values; also the files of any other
    folder that have only a few gray values, unlike the images elsewhere.

    Args:
      root: the folder.
      files: its image files, relative to it, sorted.
      normal: names of folders of normal images, as `plain` returns them; they contain no masks.

    Returns:
      The masks, each with its folder of masks, None if that is the folder of its image; and the folders that
      probably contain masks, each with the folder of the images of the same names, "" for none.
    """
    masks: dict[str, str | None] = {}
    # From the most to the least certain sign: the name of a folder, the name of a file, the pixels.
    masks |= {file: folder for file in files if (folder := outermost_folder(file, FOLDER))}
    left = [file for file in files if file not in masks]
    images = {name for file in left for name in names(file, IMAGE)}
    for file in left:
        stem, bare = names(file, MASK)
        # An affix alone proves nothing: `label_3.png` without a `3.png` may be a photo.
        if bare != stem and bare in images:
            masks[file] = None
    masks |= dict.fromkeys(_find_same_stems(root, [file for file in left if file not in masks]))

    left = [file for file in left if file not in masks]
    folders: defaultdict[str, list[str]] = defaultdict(list)
    named: defaultdict[str, list[str]] = defaultdict(list)
    # Anomalous images first: a mask has the name of one of them, and often that of a normal image, too.
    for file in sorted(left, key=lambda one: plain(pathlib.PurePath(one).parent.name) in normal):
        folders[outermost_folder(file, _LIKELY_FOLDER) or os.path.dirname(file)].append(file)
        for name in names(os.path.basename(file), IMAGE):
            named[name].append(file)
    unusual: dict[str, str] = {}
    for folder, inside in folders.items():
        likely = outermost_folder(f"{folder}/", _LIKELY_FOLDER) != ""
        if not likely and plain(os.path.basename(folder)) in ("", *normal):
            continue
        twins = _find_twins(folder, inside, named)
        # Names such as 000.png recur by chance, so without a likely folder name all files count.
        if not _have_few_levels(root, (list(twins) if likely else []) or inside):
            continue
        if not likely or not twins:
            # If all have few levels, nothing shows which ones are the masks.
            others = list(twins.values()) or sorted({*left} - {*inside})
            if not others or _have_few_levels(root, others):
                continue
            unusual[folder] = os.path.dirname(others[0]) if twins else ""
        masks |= dict.fromkeys(inside, folder)
    # Files of a folder with the same affix are judged together, by a few of them.
    alike: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for file in left:
        stem, bare = map(os.path.basename, names(file, MASK))
        if file not in masks and bare != stem:
            before, _, after = stem.partition(bare)
            alike[os.path.dirname(file), before, after].append(file)
    for inside in alike.values():
        if _have_few_levels(root, inside):
            masks |= dict.fromkeys(inside)
    return masks, unusual


def _find_same_stems(root: PathLike, files: Sequence[str]) -> list[str]:
    """Returns the masks among files that differ in the extension only, such as 1.jpg with its mask 1.png."""
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        stems[os.path.splitext(file)[0]].append(file)
    places: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for same in stems.values():
        for file in same if len(same) > 1 else ():
            places[os.path.dirname(file), os.path.splitext(file)[1]].append(file)
    few = {file for same in places.values() if _have_few_levels(root, same) for file in same}
    # If all of them have few levels, nothing shows which one is the mask.
    return [
        file for same in stems.values() if not few.issuperset(same) for file in same if file in few
    ]


def _find_twins(
    folder: str, files: Sequence[str], named: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    twins = {}
    for file in files:
        same = (one for name in names(os.path.basename(file), MASK) for one in named.get(name, ()))
        if twin := next((one for one in same if not one.startswith(f"{folder}/")), None):
            twins[file] = twin
    return twins


def _have_few_levels(root: PathLike, files: Sequence[str]) -> bool:
    """Returns whether images have few gray values; reads up to three of them."""
    # A few from all of the folder: reading all would take as long as loading the dataset.
    for file in files[:: max(len(files) // 3, 1)][:3]:
        try:
            (values,), *_ = read_masks(os.path.join(root, file))
        except UnreadableImage:
            return False
        # JPEG masks have many values along their edges, so most of the pixels count, not the number of
        # levels.
        counts = np.sort(np.unique(values, return_counts=True)[1])
        if counts[-MAX_LEVELS:].sum() < MIN_SHARE * values.size:
            return False
    return True


def pair(
    root: PathLike, masks: Mapping[str, str | None], images: Sequence[str], normal: Sequence[str]
) -> dict[str, list[str]]:
    """Finds the masks of images by name; leading folders that only the images have are ignored.

    Args:
      root: the folder of the masks.
      masks: relative to it; see `find_masks`.
      images: anomalous images, or images of unknown label.
      normal: normal images, which need no masks; those that are left belong to them.

    Raises:
      UserError: a mask fits two of `images`.
    """
    named: defaultdict[tuple[str | None, str], list[str]] = defaultdict(list)
    for mask, folder in masks.items():
        if folder is None:
            named[None, names(mask, MASK)[1]].append(mask)
            continue
        inside = mask[len(folder) :].strip("/")
        # In MVTec LOCO the masks of one image are in a folder with its name: `<stem>/000.png`.
        for name in {*names(inside, MASK), plain(os.path.dirname(inside))} - {""}:
            named[plain(os.path.dirname(folder)), name].append(mask)
    found: defaultdict[str, list[str]] = defaultdict(list)
    owners: dict[str, str] = {}
    for group in (images, normal):
        taken = set(owners)  # by anomalous images, which all masks of a name belong to
        for image in group:
            keys = (key for name in names(image, IMAGE) for key in _keys(name))
            for mask in next((named[key] for key in keys if key in named), ()):
                owner = owners.setdefault(mask, image)
                if owner != image and group is images:
                    raise UserError(
                        f"The mask {os.path.join(root, mask)} fits two images, {owner} and {image}. Put the"
                        " masks into the same subfolders as the images."
                    )
                if mask not in taken:
                    found[image].append(mask)
    return found


def _keys(name: str) -> Iterator[tuple[str | None, str]]:
    """Yields the folders that a mask of an image may belong to, and its name there; the closest first."""
    yield None, name
    parts = name.split("/")
    # `ground_truth` may be in any folder above the image, and repeat all or some of the folders below it.
    for scope in range(len(parts) - 1, -1, -1):
        for start in range(scope, len(parts)):
            yield "/".join(parts[:scope]), "/".join(parts[start:])
