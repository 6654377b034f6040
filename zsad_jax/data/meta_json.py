"""Datasets with a `meta.json`, as AnomalyCLIP, AdaCLIP, TIPSomaly and others use them."""

import dataclasses
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging

from zsad_jax.data.dataset import Dataset, Sample, Samples
from zsad_jax.data.folder import NORMAL_FOLDERS
from zsad_jax.data.issues import Issue, log_issues
from zsad_jax.data.mask_files import IMAGE, MASK, names
from zsad_jax.data.protocols import Naming, prompt_name
from zsad_jax.data.walk import plain
from zsad_jax.utils.config import fits
from zsad_jax.utils.errors import NoSplitError, UserError, plural, suggest
from zsad_jax.utils.files import PathLike
from zsad_jax.utils.records import parse_json, unique

META_JSON = "meta.json"
_LABELS = {0: 0, 1: 1, "0": 0, "1": 1}  # booleans are equal to 0 and 1
_FORM = '{"test": {CATEGORY: [{"img_path": PATH, "mask_path": PATH or "", "anomaly": 0 or 1}, …]}}'
_TYPES = {dict: "a mapping", list: "a list", str: "a string", type(None): "null"}
D = TypeVar("D", bound=Dataset)
T = TypeVar("T")


class NoImagesError(UserError):
    """None of the images that a meta.json lists in a split exists."""


def read_meta_json(
    roots: PathLike | Sequence[PathLike],
    *,
    name: str | None = None,
    split: str = "test",
    prompt_names: Mapping[str, str] | None = None,
    naming: Naming = "published",
) -> Samples:
    """Reads `<root>/meta.json`: {"train": {category: [sample, …]}, "test": {…}}.

    A sample has img_path, mask_path ("" = none), cls_name, specie_name and anomaly. Paths are relative to the
    root; an absolute path of the author's disk stands for its longest suffix that exists below the root. Files
    outside all roots are reported and not used. An image counts once, however often it is listed. Anomalous
    images without a mask are excluded from pixel metrics.

    Args:
      roots: the folder with `meta.json`, or several that make up one dataset.
      name: of the dataset; None = the (first) folder's name.
      split: "test", "train" or "all", in any case.
      prompt_names: names of categories in prompts; those of the others follow from `naming`.
      naming: see `prompt_name`.

    Raises:
      NoSplitError: there is no such split.
      NoImagesError: none of its images exists.
      UserError: there is no such file, or it does not have this form.

    Example:
      >>> import json, pathlib
      >>> sample = {"img_path": "part_1.png", "mask_path": "", "cls_name": "part"}
      >>> sample |= {"specie_name": "good", "anomaly": 0}
      >>> _ = pathlib.Path("meta.json").write_text(json.dumps({"test": {"part": [sample]}}))
      >>> [one.file_name for one in read_meta_json(".")]
      ['part_1.png']
    """
    folders = [
        pathlib.Path(one) for one in ([roots] if isinstance(roots, str | os.PathLike) else roots)
    ]
    # Both forms, since the root may itself be a link.
    within = {place for one in folders for place in (os.path.abspath(one), os.path.realpath(one))}
    name = name or folders[0].resolve().name
    samples: dict[str, Sample] = {}
    issues: list[Issue] = []
    repeated = 0
    for folder in folders:
        for entry in _entries(folder / META_JSON, split):
            sample, issue = _read_entry(entry, folder, within)
            # By real path, since several roots, entries and links may lead to one image.
            key = os.path.realpath(str(sample.image)) if sample else ""
            if sample and key in samples:
                repeated += 1
                issues += _compare(samples[key], sample)
                continue
            issues += [issue] if issue else []
            if sample:
                given = (prompt_names or {}).get(sample.category)
                named = given or prompt_name(sample.category, dataset=name, naming=naming)
                samples[key] = dataclasses.replace(sample, prompt_name=named)
    missing = [str(sample.image) for key, sample in samples.items() if not os.path.isfile(key)]
    images = {stem for sample in samples.values() for stem in names(str(sample.image), IMAGE)}
    for key, sample in samples.items():
        if sample.label and plain(sample.defect) in NORMAL_FOLDERS:
            detail = f"anomaly 1, specie_name {sample.defect}"
            issues.append(Issue("entry_contradicts", sample.file_name, detail))
        if not sample.mask:
            continue
        mask, detail = str(sample.mask), ""
        if os.path.realpath(mask) in samples:
            detail = "an image of the list"
        # Lists that were made by position pair a mask with the wrong image where a file is missing.
        elif other := _find_other(mask, str(sample.image), images):
            detail = f"{os.path.basename(mask)}, of {other}"
        if detail:
            issues.append(Issue("mask_of_other", sample.file_name, detail))
            samples[key] = dataclasses.replace(sample, mask=None, has_mask=False)
    if len(missing) == len(samples):
        first = [*missing, *map(str, issues)][0]
        raise NoImagesError(
            f"None of the images in {folders[0] / META_JSON} exists (the first: {first}). Expected paths"
            f" relative to {folders[0]}. Correct the paths, or give another folder."
        )
    if missing:
        number = plural(len(missing), "image")
        logging.warning("%s: %s missing, such as %s.", name, number, missing[0])
    if repeated:
        issues.insert(0, Issue("entries_repeated", META_JSON, f"{repeated} in {split!r}"))
    log_issues(name, issues)
    return Samples(name, list(samples.values()), issues=issues)


def read_splits(read: Callable[[str], D]) -> dict[str, D | Samples]:
    """Reads the splits train and test of a meta.json; most medical datasets have no training split.

    Args:
      read: reads a split, as `read_meta_json` does.

    Returns:
      The splits. A training split none of whose images exists is empty, with an issue.

    Raises:
      UserError: there is no test split, or the meta.json cannot be read.
    """
    splits: dict[str, D | Samples] = {}
    for split in ("train", "test"):
        try:
            splits[split] = read(split)
        # Medical sets list no training split, and a copy for evaluation may lack its images.
        except (NoSplitError, NoImagesError) as error:
            if split == "test":
                raise
            if isinstance(error, NoImagesError):
                missing = Issue("images_missing", META_JSON, split)
                splits[split] = Samples("", [], issues=[missing])
    return splits


def _entries(path: pathlib.Path, split: str) -> list[dict[str, Any]]:
    try:
        # From bytes, the encoding is detected: editors on Windows write a byte order mark, or UTF-16.
        content = parse_json(path.read_bytes())
        content = _expect(dict, content, "it must map splits to categories")
        # AnomalyCLIP's DAGM has the keys Train and Test.
        splits = unique([(key.lower(), value or {}) for key, value in content.items()])
        entries = [
            _check(
                {"cls_name": name} | _expect(dict, one, f"an entry of {name!r} must be a mapping")
            )
            for key in splits
            if split.lower() in (key, "all")
            for name, listed in _expect(
                dict, splits[key], f"{key!r} must map categories to lists"
            ).items()
            for one in _expect(list, listed or [], f"{name!r} must be a list of entries")
        ]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}).") from error
    except ValueError as error:
        encoding = isinstance(error, UnicodeDecodeError)
        reason = "it is not encoded in UTF-8 or UTF-16" if encoding else error
        raise UserError(
            f"{path} is not a valid meta.json: {reason}. Expected {_FORM}. Correct the file."
        ) from error
    if not entries:
        filled = [
            key for key, value in splits.items() if isinstance(value, dict) and any(value.values())
        ]
        empty = f"Its keys are {', '.join(map(repr, splits))}." if splits else "It is empty."
        known = suggest(split, filled) if filled else f"It lists no images. {empty}"
        raise NoSplitError(f"{path} has no split {split!r}. {known}")
    return entries


def _expect(kind: type[T], value: Any, rule: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{rule}, but is {_TYPES.get(type(value), repr(value))}")
    return value


def _compare(first: Sample, second: Sample) -> list[Issue]:
    """Reports the differences of two entries of an image."""
    values = [
        (name, getattr(first, name), getattr(second, name))
        for name in ("label", "category", "mask")
    ]
    differences = [f"{name} {one} and {other}" for name, one, other in values if one != other]
    detail = ", ".join(differences)
    return [Issue("entry_contradicts", second.file_name, detail)] * bool(detail)


def _check(entry: dict[str, Any]) -> dict[str, Any]:
    image, mask, anomaly = entry.get("img_path"), entry.get("mask_path"), entry.get("anomaly")
    if not image or not _is_text(image):
        raise ValueError(f"an img_path of {entry['cls_name']!r} must be a path, but is {image!r}")
    if mask is not None and not _is_text(mask):
        raise ValueError(f"the mask_path of {image} must be a path, but is {mask!r}")
    if not isinstance(anomaly, str | int | float) or anomaly not in _LABELS:
        found = repr(anomaly) if "anomaly" in entry else "missing"
        raise ValueError(
            f"the anomaly of {image} must be 0 (normal) or 1 (anomalous), but is {found}"
        )
    name = entry["cls_name"]
    if not fits(name, str | int) or not str(name).strip() or not _is_text(str(name)):
        raise ValueError(f"the cls_name of {image} must be a name, but is {name!r}")
    specie = entry.get("specie_name")
    if not isinstance(specie, str | int | None):
        raise ValueError(f"the specie_name of {image} must be a name, but is {specie!r}")
    return entry | {"anomaly": _LABELS[anomaly]}


def _is_text(value: Any) -> bool:
    # JSON can express lone surrogates, which no file system or terminal can.
    return isinstance(value, str) and "\0" not in value and not re.search("[\ud800-\udbff]", value)


def _read_entry(
    entry: Mapping[str, Any], root: pathlib.Path, within: set[str]
) -> tuple[Sample | None, Issue | None]:
    """Returns a sample and its issue; no sample if the image is outside the folders `within`."""
    image = _resolve(entry["img_path"], root, within)
    if image is None:
        return None, Issue("image_outside", entry["img_path"])
    label, listed = entry["anomaly"], entry.get("mask_path") or ""
    file_name = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
    mask = _resolve(listed, root, within) if listed else None
    # Of os.path, since those of pathlib raise an error for a name that is too long.
    usable = mask is not None and os.path.isfile(mask)
    if label:
        # Some lists give the folder of the masks for an image that has none: this is no issue.
        missing = "mask_outside" if mask is None else "" if os.path.isdir(mask) else "mask_missing"
        kind = missing if listed and not usable else ""
    else:
        kind = "mask_of_normal" if usable else ""
    sample = Sample(
        image=str(image),
        mask=str(mask) if label and usable else None,
        # Sets without masks list "" for anomalous images, too: with an all-zero mask, their defects would
        # count as normal pixels.
        has_mask=not label or usable,
        label=label,
        category=str(entry["cls_name"]),
        defect=str(entry.get("specie_name") or ("" if label else "good")),
        file_name=file_name,
    )
    return sample, Issue(kind, file_name, listed) if kind else None


def _find_other(mask: str, image: str, images: Collection[str]) -> str | None:
    """Returns the name of another image in the folder of an image, if the mask has that name."""
    folder, file = os.path.split(image)
    given = names(os.path.basename(mask), MASK)
    if {*given, plain(pathlib.Path(mask).parent.name)} & {*names(file, IMAGE)}:
        return None
    return next((one for one in given if os.path.join(plain(folder), one) in images), None)


def _resolve(path: str, root: pathlib.Path, within: set[str]) -> pathlib.Path | None:
    """Returns the path of a listed file, None if it is outside the folders `within`.

    A path of another disk that is not below the root is returned unchanged; it does not exist.
    """
    # Lists written on Windows have its separators, and names on Linux may contain backslashes; macOS stores
    # accents in another Unicode form than other systems.
    slashes = path.replace("\\", "/")
    spellings = (path, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD")))
    there = (one for one in spellings if os.path.exists(root / one))
    listed = pathlib.PurePosixPath(next(there, slashes))
    direct = root / listed
    if not (listed.is_absolute() or (listed.parts and listed.parts[0].endswith(":"))):
        return direct if _is_inside(direct, within) else None
    # The longest suffix first: a shorter one may name another file.
    suffixes = (root.joinpath(*listed.parts[start:]) for start in range(1, len(listed.parts)))
    found = (one for one in (*suffixes, direct) if os.path.exists(one))
    inside = next((one for one in found if _is_inside(one, within)), None)
    # Absent, not outside: the caller reports a missing image.
    return inside or (None if os.path.exists(direct) else direct)


def _is_inside(path: pathlib.Path, within: set[str]) -> bool:
    """Returns whether a path is in one of these folders; links in them may lead elsewhere."""
    # Not the real path: links from the root to another disk are the user's own.
    absolute = pathlib.Path(os.path.abspath(path))
    return any(absolute.is_relative_to(place) for place in within)
