"""A folder of images as a dataset: flat, with masks beside, or in MVTec's layout."""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import logging

from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.issues import Issue, log_issues
from zsad_jax.data.mask_files import FOLDER, find_folder, find_masks, pair, plain
from zsad_jax.data.preprocess import UnreadableImage, decode_mask
from zsad_jax.data.protocols import prompt_name as default_prompt_name
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
NORMAL_FOLDERS = ("good", "ok", "normal", "healthy", "non_defective")
NORMAL_BESIDE = (("no", "yes"), ("negative", "positive"))  # normal only where its opposite is
SPLITS = ("train", "validation", "test")
DOCUMENTS = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf")
_NAMES_SHOWN = 10


class Found(NamedTuple):
    """The images that were found, and the files beside them that are not scored.

    Attributes:
      images: paths, each once.
      ignored: the other files, with the reason.
    """

    images: list[str]
    ignored: list[Issue]


def find_images(paths: Sequence[PathLike]) -> Found:
    """Lists the images that a person means by files, folders and glob patterns.

    Folders are searched with all their subfolders. Masks in them (see `find_masks`), hidden files and files of
    other types are ignored and reported. A file that is named itself, or matched by a pattern, is never
    ignored.

    Returns:
      Images in the order of `paths`, sorted within each.

    Raises:
      UserError: a path does not exist, or there is no image at all.
    """
    images: dict[str, str] = {}
    ignored: dict[str, Issue] = {}
    for path in [os.fspath(one) for one in paths]:
        if os.path.isdir(path):
            found = [_search(path)]
        elif os.path.exists(path):
            found = [Found([path], [])]
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            found = [_search(one) if os.path.isdir(one) else Found([one], []) for one in matches]
        else:
            raise UserError(f"There is no file or folder {path}.")
        if not any(one.images for one in found):
            logging.warning("No images in %s.", path)
        for one in found:
            for image in one.images:
                images.setdefault(os.path.realpath(image), image)
            for issue in one.ignored:
                ignored.setdefault(os.path.realpath(issue.file), issue)
    if not images:
        raise UserError(
            f"No images found in {', '.join(os.fspath(one) for one in paths)} (known: {', '.join(EXTENSIONS)})."
        )
    return Found(list(images.values()), [ignored[key] for key in ignored if key not in images])


def read_folder(
    path: PathLike,
    *,
    name: str | None = None,
    category: str | None = None,
    prompt_name: str | None = None,
    prompt_names: Mapping[str, str] | None = None,
    masks: PathLike | None = None,
    split: str = "test",
    normal_folders: str | Sequence[str] | None = None,
) -> Samples:
    """Reads a folder of images as a dataset.

    Three layouts are told apart: MVTec's (`<category>/test/<defect>/…` with `<category>/ground_truth`),
    one category of it (`test/<defect>/…`), and any other, where all images in all subfolders are one
    category. Masks are paired by name, never by position; see `find_masks` and `pair`.

    An image is normal when a folder that it lies in is one of `normal_folders`, anomalous otherwise.
    Where no such folder exists, masks tell (no mask, or an all-zero one: normal); where there are no masks
    either, nothing is known: label 0 and has_mask False, and an issue says so. Links to folders are
    followed, to each folder once.

    Args:
      path: the folder.
      name: of the dataset; None = the folder's name.
      category: of a single category; None = its folder's name.
      prompt_name: how every category is called in prompts; None = derived from the category in
        MVTec's layout, "object" otherwise.
      prompt_names: the same per category.
      masks: the folder of the masks of a single category; None = those that `find_masks` finds.
      split: which folder of MVTec's layout is read.
      normal_folders: names of folders with normal images, in any spelling; None = the usual ones,
        `NORMAL_FOLDERS`, and those of `NORMAL_BESIDE` where the opposite is.

    Raises:
      UserError: the folder is missing, has no images or no such split, no folder is one of
        `normal_folders`, a folder of another name looks like masks, or a mask fits two anomalous images.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    name = name or root.resolve().name
    classes = _find_classes(root, split)
    if len(classes) > 1 and (category or masks):
        raise UserError(
            f"`category` and `masks` are for a folder of one category, but {root} has several:"
            f" {_enumerate([one.name for one in classes])}."
        )
    if masks is not None and not os.path.isdir(masks):
        raise UserError(f"There is no folder of masks {os.fspath(masks)}.")
    normal = _find_normal(root, classes, normal_folders)
    parts = [_read_part(root, one, split, category, masks, normal) for one in classes]
    if not parts:
        prompt_name = prompt_name or "object"
        parts = [_read_part(root, root, None, category or name, masks, normal)]
    samples = [sample for part, _ in parts for sample in part]
    found = [issue for _, part in parts for issue in part]
    notes = [issue for issue in found if issue.file.lower().endswith(DOCUMENTS)]
    issues = [issue for issue in found if not issue.file.lower().endswith(DOCUMENTS)]
    if not samples:
        raise UserError(_why_empty(root))
    _report(name, samples, issues)
    for i, sample in enumerate(samples):
        called = (prompt_names or {}).get(sample.category) or prompt_name
        called = called or default_prompt_name(sample.category, dataset=name)
        samples[i] = dataclasses.replace(sample, prompt_name=called)
    return Samples(name, samples, issues=issues, notes=notes)


def _why_empty(root: pathlib.Path) -> str:
    """Why a folder has no samples, and what may be meant."""
    everything = _list_images(root)
    if everything and len(find_masks(root, everything, ())[0]) == len(everything):
        place = root / os.path.dirname(everything[0])
        return (
            f"{root} holds ground truth only, no image; if these are images, give {place} itself."
        )
    return f"No images found in {root} (known: {', '.join(EXTENSIONS)})."


def list_splits(path: PathLike) -> tuple[str, ...]:
    """The splits of a folder in MVTec's layout, of one category or several; () in any other."""
    places = [pathlib.Path(path), *_subfolders(pathlib.Path(path))]
    return tuple(split for split in SPLITS if any(_subfolder(one, split) for one in places))


def _find_classes(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The folders of the categories in MVTec's layout; none in any other."""
    if _subfolder(root, split):
        return [root]
    # A link to a category is that category, not one more.
    found = sorted(_subfolders(root), key=lambda one: (one.is_symlink(), one.name))
    classes = {one.resolve(): one for one in reversed(found) if _subfolder(one, split)}
    if not classes and (there := list_splits(root)):
        raise UserError(
            f"{root} has no split {split!r}; it has {' and '.join(there)}: give one as `split`."
        )
    return sorted(classes.values())


def _find_normal(
    root: pathlib.Path, classes: Sequence[pathlib.Path], given: str | Sequence[str] | None
) -> set[str]:
    """The names of folders that make their images normal.

    Those of all splits count: `no` is normal in one split because there is a `yes` in another.
    """
    splits = [place for one in classes for place in _subfolders(one)]
    there = {
        plain(part): part
        for place in [one for one in splits if not FOLDER.fullmatch(plain(one.name))] or [root]
        for image in _list_images(place)
        if not find_folder(image, FOLDER)
        for part in image.split("/")[:-1]
    }
    if not given:
        return {*NORMAL_FOLDERS, *(name for name, other in NORMAL_BESIDE if other in there)}
    given = [given] if isinstance(given, str) else [str(name) for name in given]
    normal = {plain(name) for name in given}
    if not normal & there.keys():
        raise UserError(
            f"No folder of images in {root} is called {' or '.join(given)}, as `normal_folders` says;"
            f" there are: {_enumerate(sorted(there.values())) or 'none'}."
        )
    return normal


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + ", …" * (len(names) > _NAMES_SHOWN)


def _read_part(
    root: pathlib.Path,
    folder: pathlib.Path,
    split: str | None,
    category: str | None,
    masks: PathLike | None,
    normal: set[str],
) -> tuple[list[Sample], list[Issue]]:
    """The samples of one category; `split` is None for a folder without layout."""
    category = category or (folder.resolve() if folder == root else folder).name  # "." has no name
    place = folder if split is None else folder / (_subfolder(folder, split) or "")
    images, known, issues = _list_part(folder, place, split, masks, normal)
    start = "" if split is None else f"{place.name}/"
    folders = {image: image.removeprefix(start).split("/")[:-1] for image in images}
    normals = {image for image in images if normal & set(map(plain, folders[image]))}
    labelled = split is not None or bool(normals)
    truth = pathlib.Path(masks or folder)
    pairs = pair(truth, known, [one for one in images if one not in normals], sorted(normals))
    samples = []
    for image in images:
        found = tuple(str(truth / one) for one in pairs.get(image, ()))
        label = int(image not in normals) if labelled else _judge(found)
        has_mask = bool(found) or (not label and (labelled or bool(pairs)))
        if label and not has_mask and known:
            issues.append(Issue("mask_missing", image))
        if labelled and not label and _judge(found):
            issues.append(Issue("mask_of_normal", image))
        defect = folders[image][-1] if label and labelled and folders[image] else ""
        sample = Sample(
            image=str(folder / image),
            mask=(found if len(found) > 1 else found[0]) if label and found else None,
            has_mask=has_mask,
            label=label,
            category=category,
            defect="good" if not label and (labelled or has_mask) else defect,
            file_name=(folder / image).relative_to(root).as_posix(),
        )
        samples.append(sample)
    if split not in ("train", "validation"):  # the masks are those of another split
        used = {mask for found in pairs.values() for mask in found}
        unused = [os.path.relpath(truth / one, folder) for one in known if one not in used]
        issues += [Issue("mask_unused", one) for one in unused]
    issues = [
        one._replace(file=_to_posix(os.path.relpath(folder / one.file, root))) for one in issues
    ]
    anomalous = sum(sample.label for sample in samples)
    if not images:
        issues.append(Issue("folder_empty", str(place)))
    elif (not labelled and not pairs) or (anomalous == len(images) and not known):
        counted = f"all {len(images)} images count as {'anomalous' if anomalous else 'normal'}"
        issues.append(Issue("label_unknown", str(place), counted))
    elif anomalous and not known:
        detail = f"{anomalous} of {len(images)} images"
        issues.append(Issue("masks_missing", str(place), detail))
    return samples, issues


def _list_part(
    folder: pathlib.Path,
    place: pathlib.Path,
    split: str | None,
    masks: PathLike | None,
    normal: set[str],
) -> tuple[list[str], dict[str, str | None], list[Issue]]:
    """The images of a category and its masks, see `find_masks`, relative to its folder, and other files."""
    ignored: list[Issue] = []
    # Each folder by itself: links in one split may lead to images of another.
    splits = [one for one in _subfolders(folder) if one == place or plain(one.name) not in SPLITS]
    places = [folder] if split is None else splits
    files = [one for below in places for one in _list_images(folder, ignored, below)]
    issues = [issue for issue in ignored if issue.kind != "hidden"]
    if masks is not None:
        inside = _to_posix(os.path.relpath(masks, folder))
        files = [one for one in files if not one.startswith(f"{inside}/")]
    known, unusual = find_masks(folder, files, normal)
    start = "" if split is None else f"{place.name}/"
    images = [one for one in files if one.startswith(start) and one not in known]
    if masks is not None:
        issues += [Issue("mask_unused", one) for one in known]
        known = dict.fromkeys(_list_images(masks), "")
    elif unusual:
        suspect, other = next(iter(unusual.items()))
        raise UserError(
            f"{folder / suspect} looks like masks of {other!r}: its files have the same names and few gray"
            " values. Rename it to ground_truth, or give it as `masks`; if these are images, rename the files."
        )
    return images, known, issues


def _judge(masks: tuple[str, ...]) -> int:
    """The label of an image that only its masks can tell."""
    try:
        return int(bool(masks) and bool(decode_mask(masks).any()))
    except UnreadableImage:
        return 1  # the loader reports the mask


def _report(name: str, samples: Sequence[Sample], issues: Sequence[Issue]) -> None:
    anomalous = sum(sample.label for sample in samples)
    logging.info("%s: %d images, %d of them anomalous.", name, len(samples), anomalous)
    log_issues(name, issues)


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not _is_hidden(one.name))


def _subfolder(folder: pathlib.Path, name: str) -> str | None:
    """The name on disk of the subfolder that has this name, in any spelling."""
    return next((one.name for one in _subfolders(folder) if plain(one.name) == plain(name)), None)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


def _list_images(
    root: PathLike, ignored: list[Issue] | None = None, place: PathLike | None = None
) -> list[str]:
    """All images below a folder, or a place in it, relative to the folder, with "/" between folders, sorted.

    Links are followed after the folders themselves, and none to a folder that was seen or holds the root.
    Other files, and hidden folders as a whole, are added to `ignored`.
    """
    found: list[str] = []
    others: list[Issue] = []

    def report(error: OSError) -> None:
        inside = os.path.relpath(error.filename, root)
        others.append(Issue("folder_unreadable", inside, error.strerror or ""))

    starts = [os.fspath(place or root)]
    seen = {str(one) for one in pathlib.Path(starts[0]).resolve().parents}
    for start in starts:
        for folder, subfolders, files in os.walk(start, onerror=report):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            inside = os.path.relpath(folder, root)
            hidden = [one for one in (*subfolders, *files) if _is_hidden(one)]
            others += [Issue("hidden", os.path.join(inside, one)) for one in hidden]
            subfolders[:] = sorted(one for one in subfolders if not _is_hidden(one))
            below = [os.path.join(folder, one) for one in subfolders]
            starts += [one for one in below if os.path.islink(one)]
            for name in files:
                if _is_hidden(name):
                    continue
                if name.lower().endswith(EXTENSIONS):
                    found.append(os.path.join(inside, name))
                else:
                    suffix = os.path.splitext(name)[1].lower()
                    others.append(Issue("format_unsupported", os.path.join(inside, name), suffix))
    if ignored is not None:
        ignored += sorted(one._replace(file=_to_posix(one.file)) for one in others)
    return sorted(map(_to_posix, found))


def _to_posix(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _search(folder: str) -> Found:
    """The images of a folder that is to be predicted, ground truth where there is nothing else."""
    ignored: list[Issue] = []
    everything = _list_images(folder, ignored)
    found, _ = find_masks(folder, everything, NORMAL_FOLDERS)
    images = [one for one in everything if one not in found] or everything
    masks = [Issue("mask_ignored", one) for one in found if images is not everything]
    return Found(
        [os.path.join(folder, one) for one in images],
        [issue._replace(file=os.path.join(folder, issue.file)) for issue in [*masks, *ignored]],
    )
