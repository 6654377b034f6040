"""Reports image files that are not part of any sample."""

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from zsad_jax.data.benchmarks.listing import Listing, Path
from zsad_jax.data.issues import Issue
from zsad_jax.data.walk import EXTENSIONS, walk

NOT_READ = (".heic", ".heif", ".avif", ".jxl", ".dcm", ".mha", ".nrrd")
VOLUMES = (".nii", ".nii.gz")
PICTURES = (*EXTENSIONS, *NOT_READ, *VOLUMES)
NAMED_ALONE = 5  # more at one place are reported as a number
PLACES = 100  # where there are more, they are reported by the folders above

_Groups = dict[tuple[str, str], list[str]]  # (folder, suffix that is not read, or "") -> files


def find_unused(listing: Listing, excluded: Iterable[str]) -> list[Issue]:
    """Finds the image files below the root of a listing that nothing accounts for; none is opened.

    Args:
      listing: whose samples, further files and issues account for files; an issue of a folder for all in it.
      excluded: glob patterns, relative to the root and in any case, of what is excluded on purpose; * matches
        folders, too.

    Returns:
      An issue each for a few files at one place, one for many; folders of nothing else count as one place.
    """
    root = listing.root
    # One pattern for all globs: it is matched against every file, and benchmarks have up to a million.
    patterns = re.compile("|".join(map(fnmatch.translate, excluded)), re.IGNORECASE)
    reported = {issue.file for issue in listing.issues}

    def is_skipped(name: str) -> bool:
        return name in reported or bool(patterns.fullmatch(name))

    used = _relative(root, _files_of(listing))
    unused = [
        name
        for name in walk(root, skip=is_skipped)
        if name.lower().endswith(PICTURES) and name not in used
    ]
    occupied = {""}
    for folder in {os.path.dirname(name) for name in used}:
        while folder not in occupied:
            occupied.add(folder)
            folder = os.path.dirname(folder)
    groups = _group((_place(name, occupied), name) for name in unused)
    return [
        issue
        for (place, suffix), names in groups.items()
        for issue in _report(place, suffix, names)
    ]


def _files_of(listing: Listing) -> Iterator[str]:
    yield from listing.known
    for samples in listing.samples.values():
        for sample in samples:
            yield from (one for one in (sample.image, *sample.masks) if isinstance(one, str))


def _relative(root: Path, paths: Iterable[str]) -> set[str]:
    """Returns the names, relative to the root, of the files below it; pathlib is too slow for a million."""
    prefix = os.path.join(os.path.normpath(root), "").removeprefix(os.path.join(".", ""))
    normal = map(os.path.normpath, paths)
    below = (path[len(prefix) :] for path in normal if path.startswith(prefix))
    return {name.replace(os.sep, "/") for name in below}


def _place(name: str, occupied: set[str]) -> str:
    """Returns the outermost folder of a file that holds nothing of the benchmark, else the file's own."""
    place = os.path.dirname(name)
    while place not in occupied and os.path.dirname(place) not in occupied:
        place = os.path.dirname(place)
    return place


def _group(placed: Iterable[tuple[str, str]]) -> _Groups:
    """Groups files by place and format; where places are too many, by the folders above them."""
    groups: _Groups = defaultdict(list)
    for place, name in placed:
        suffix = os.path.splitext(name)[1].lower()
        groups[place, suffix if suffix in NOT_READ else ""].append(name)
    depth = max((place.count("/") for place, _ in groups), default=0)
    # Merge the deepest places until the report is short enough to read.
    while len(groups) > PLACES and depth >= 0:
        merged: _Groups = defaultdict(list)
        for (place, suffix), names in groups.items():
            merged["/".join(place.split("/")[:depth]), suffix] += names
        groups, depth = merged, depth - 1
    return groups


def _report(place: str, suffix: str, names: Sequence[str]) -> list[Issue]:
    kind = "format_unsupported" if suffix else "image_unused"
    if len(names) <= NAMED_ALONE:
        return [Issue(kind, name, suffix) for name in names]
    return [Issue(kind, place or ".", f"{len(names)} {suffix or 'image'} files")]
