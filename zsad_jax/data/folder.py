"""Folders of images as datasets: flat, with masks next to the images, or in MVTec's layout."""

import dataclasses
import functools
import glob
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from zsad_jax.data.dataset import Sample, Samples, as_mask
from zsad_jax.data.issues import Issue, group_issues, log_issues, summarize_issues
from zsad_jax.data.mask_files import FOLDER, find_masks, outermost_folder, pair
from zsad_jax.data.preprocess import UnreadableImage, decode_mask
from zsad_jax.data.protocols import prompt_name as default_prompt_name
from zsad_jax.data.walk import (
    EXTENSIONS,
    find_folder,
    is_image,
    list_folders,
    plain,
    relative,
    walk,
)
from zsad_jax.utils.errors import UserError, plural, suggest
from zsad_jax.utils.files import PathLike, user_path
from zsad_jax.utils.remote import fetch

# "good" is MVTec AD's name and "ok" BTAD's; the others are names that users may give.
NORMAL_FOLDERS = ("good", "ok", "normal", "healthy", "non_defective")
# "no" alone may stand for anything ("no. 1"), so it is normal only if its opposite exists.
NORMAL_BESIDE = (("no", "yes"), ("negative", "positive"))
SPLITS = ("train", "validation", "test")
DOCUMENTS = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf")


class Found(NamedTuple):
    """Images to score, each once, and the ignored files with the reason."""

    images: list[str]
    ignored: list[Issue]


def find_images(paths: Sequence[PathLike], *, include_masks: bool = False) -> Found:
    """Lists the images of files, folders and glob patterns.

    Folders are searched with all their subfolders. Masks in them (see `find_masks`), hidden files and files of
    other types are ignored and reported. A file that is given itself, or matches a pattern, is never ignored.

    Args:
      paths: files, folders and patterns.
      include_masks: whether files that look like masks are images, too.

    Returns:
      Images in the order of `paths`, sorted within each.

    Raises:
      UserError: a path does not exist, or there are no images.

    Example:
      >>> find_images(["part_*.png"]).images
      ['part_1.png', 'part_2.png']
    """
    images: dict[str, str] = {}
    ignored: dict[str, Issue] = {}
    repeated: dict[str, Issue] = {}
    empty: list[str] = []
    for path in map(fetch, paths):
        if not os.path.exists(path) and not glob.has_magic(path):
            raise UserError(f"{path} does not exist. Give a file, a folder or a glob pattern.")
        matches = [path] if os.path.exists(path) else _match(path)
        found = [
            _search(one, include_masks) if os.path.isdir(one) else Found([one], [])
            for one in matches
        ]
        if not any(one.images for one in found):
            empty.append(path)
        for one in found:
            for image in one.images:
                # By real path: links, folders and patterns may lead to the same file.
                key = os.path.realpath(image) if os.path.exists(image) else image
                first = images.setdefault(key, image)
                if os.path.abspath(first) != os.path.abspath(image):
                    issue = Issue("image_repeated", image, first)
                    repeated.setdefault(os.path.abspath(image), issue)
            for issue in one.ignored:
                ignored.setdefault(os.path.realpath(issue.file), issue)
    if not images:
        raise UserError(_no_images(", ".join(empty), ignored.values()))
    for path in empty:
        logging.warning("No images found in %s.", path)
    # A file that one folder ignores may be given by itself: then it is an image.
    others = [issue for key, issue in ignored.items() if key not in images]
    return Found(list(images.values()), [*repeated.values(), *others])


def _match(pattern: str) -> list[str]:
    """Returns the paths that match a pattern, whose folders may have brackets in their names."""
    folder = os.path.dirname(pattern)
    while folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return sorted(glob.glob(glob.escape(folder) + pattern[len(folder) :], recursive=True))


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
    include_masks: bool = False,
) -> Samples:
    """Reads a folder of images as a dataset.

    Three layouts are recognized: MVTec's (`<category>/test/<defect>/…` with `<category>/ground_truth`), one
    category of it (`test/<defect>/…`), and any other, where all images in all subfolders are one category.
    Masks are paired by name; see `find_masks` and `pair`. Links to folders are followed, to each folder once.

    In MVTec's layout, and in any that has one of `normal_folders`, an image is normal if one of its folders has
    such a name. In any other, an image is anomalous if it has a mask that is not all zero. Without masks, all
    images have label 0 and `has_mask` False, and an issue is reported.

    Args:
      path: the folder.
      name: of the dataset; None = the folder's name.
      category: name of the only category; None = its folder's name.
      prompt_name: of every category; None = derived from the category in MVTec's layout, "object" otherwise.
      prompt_names: the same per category.
      masks: folder of the masks of the only category; None = those that `find_masks` finds.
      split: folder of MVTec's layout that is read.
      normal_folders: names in any spelling; None = `NORMAL_FOLDERS` and, beside an opposite, `NORMAL_BESIDE`.
      include_masks: whether files that look like masks, outside of the folder `masks`, are images, too.

    Raises:
      UserError: there is no such folder or split, no image or none of `normal_folders`, a folder looks like
        masks, or a mask fits two anomalous images.

    Example:
      >>> dataset = read_folder(".", name="parts")
      >>> [sample.file_name for sample in dataset]
      ['part_1.png', 'part_2.png']
    """
    root = pathlib.Path(user_path(path))
    if not root.is_dir():
        raise UserError(f"The folder {root.absolute()} does not exist.")
    masks = None if masks is None else fetch(masks, "`masks`")
    name = name or root.resolve().name
    classes = _find_classes(root, split)
    if len(classes) > 1 and (category or masks):
        raise UserError(
            f"`category` and `masks` require a folder of one category, but {root} has {len(classes)}. Give the"
            f" folder of one of them, such as {classes[0]}."
        )
    if masks is not None and not os.path.isdir(masks):
        raise UserError(f"The folder of masks {masks} does not exist.")
    normal = _find_normal(root, classes, normal_folders)
    read = functools.partial(
        _read_part, root, masks=masks, normal=normal, include_masks=include_masks
    )
    parts = [read(one, split, category) for one in classes]
    if not parts:
        prompt_name = prompt_name or "object"
        parts = [read(root, None, category or name)]
    samples = [sample for part, _ in parts for sample in part]
    if not samples:
        raise UserError(_why_empty(root))
    found = [issue for _, part in parts for issue in part]
    if classes and root not in classes and split not in ("train", "validation"):
        found += _find_beside(root, classes)
    # Most datasets have a readme or a list beside the images: a note, not a warning.
    notes = [issue for issue in found if issue.kind in ("document", "hidden")]
    issues = [issue for issue in found if issue.kind not in ("document", "hidden")]
    anomalous = sum(sample.label for sample in samples)
    logging.info("%s: %s, %d anomalous.", name, plural(len(samples), "image"), anomalous)
    log_issues(name, issues)
    for i, sample in enumerate(samples):
        given = (prompt_names or {}).get(sample.category) or prompt_name
        named = given or default_prompt_name(sample.category, dataset=name)
        samples[i] = dataclasses.replace(sample, prompt_name=named)
    return Samples(name, samples, issues=issues, notes=notes)


def _no_images(place: object, ignored: Iterable[Issue] = ()) -> str:
    there = "".join(f" {summarize_issues(kind)}." for kind in group_issues(ignored))
    return f"No images found in {place}.{there} Supported formats: {', '.join(EXTENSIONS)}."


def _why_empty(root: pathlib.Path) -> str:
    everything = _list_images(root)
    # A user who names `ground_truth` sees images in it, so "no images" alone would be puzzling.
    if everything and len(find_masks(root, everything, ())[0]) == len(everything):
        place = root / os.path.dirname(everything[0])
        return f"{root} contains only ground truth. If these are images, give {place} itself."
    return _no_images(root)


def _find_beside(folder: pathlib.Path, known: Iterable[pathlib.Path]) -> list[Issue]:
    """Reports the images, and files of other formats, that are in none of these folders of a folder."""
    real = {one.resolve() for one in known}
    issues: list[Issue] = []
    images = _list_images(folder, issues, skip=lambda name: (folder / name).resolve() in real)
    return [*issues, *(Issue("image_beside", one) for one in images)]


def list_splits(path: PathLike) -> tuple[str, ...]:
    """Lists the splits of a folder in MVTec's layout, of one category or several; () for any other."""
    places = [path, *list_folders(path)]
    return tuple(split for split in SPLITS if any(find_folder(one, split) for one in places))


def _find_classes(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Lists the folders of the categories in MVTec's layout; none in any other."""
    if find_folder(root, split):
        return [root]
    # A link to a category is that category, not one more: of both, the real folder gives the name.
    found = sorted(list_folders(root), key=lambda one: (one.is_symlink(), one.name))
    classes = {one.resolve(): one for one in reversed(found) if find_folder(one, split)}
    # Read as a folder without a layout, the other splits would be mixed into one category.
    if not classes and (there := list_splits(root)):
        raise UserError(f"{root} has no split {split!r}. {suggest(split, there)}")
    return sorted(classes.values())


def _find_normal(
    root: pathlib.Path, classes: Sequence[pathlib.Path], given: str | Sequence[str] | None
) -> set[str]:
    """Returns the names of folders of normal images.

    All splits count: `no` is normal in one split because there is a `yes` in another.
    """
    splits = [place for one in classes for place in list_folders(one)]
    there = {
        plain(part): part
        for place in [one for one in splits if not FOLDER.fullmatch(plain(one.name))] or [root]
        for image in _list_images(place)
        if not outermost_folder(image, FOLDER)
        for part in image.split("/")[:-1]
    }
    if not given:
        return {*NORMAL_FOLDERS, *(name for name, other in NORMAL_BESIDE if other in there)}
    given = [given] if isinstance(given, str) else [str(name) for name in given]
    normal = {plain(name) for name in given}
    if not normal & there.keys():
        known = suggest(given[0], sorted(there.values())) if there else "It has no subfolders."
        raise UserError(f"No folder of images in {root} is named {' or '.join(given)}. {known}")
    return normal


def _read_part(
    root: pathlib.Path,
    folder: pathlib.Path,
    split: str | None,
    category: str | None,
    *,
    masks: PathLike | None,
    normal: set[str],
    include_masks: bool,
) -> tuple[list[Sample], list[Issue]]:
    """Reads the samples of one category; `split` is None for a folder without layout."""
    category = category or (folder.resolve() if folder == root else folder).name  # "." has no name
    place = folder if split is None else find_folder(folder, split) or folder
    images, known, issues = _list_part(folder, place, split, masks, normal, include_masks)
    start = "" if split is None else f"{place.name}/"
    # Folders above the split do not label an image: those in `good/test/bent` are anomalous.
    folders = {image: image.removeprefix(start).split("/")[:-1] for image in images}
    normals = {image for image in images if normal & set(map(plain, folders[image]))}
    labelled = split is not None or bool(normals)
    truth = pathlib.Path(masks or folder)
    # Anomalous images choose first: a normal image of the same name has no claim on their masks.
    pairs = pair(truth, known, [one for one in images if one not in normals], sorted(normals))
    samples = []
    for image in images:
        found = tuple(str(truth / one) for one in pairs.get(image, ()))
        # Without folders that label, the content of the mask decides: some tools write empty masks for normal
        # images.
        label = int(image not in normals) if labelled else _judge(found)
        # A normal image counts in pixel metrics with an all-zero mask, unless its label is unknown.
        has_mask = bool(found) or (not label and (labelled or bool(pairs)))
        if label and not has_mask and known:
            issues.append(Issue("mask_missing", image))
        if labelled and not label and _judge(found):
            issues.append(Issue("mask_of_normal", image))
        defect = folders[image][-1] if label and labelled and folders[image] else ""
        sample = Sample(
            image=str(folder / image),
            mask=as_mask(found) if label else None,
            has_mask=has_mask,
            label=label,
            category=category,
            defect="good" if not label and (labelled or has_mask) else defect,
            file_name=(folder / image).relative_to(root).as_posix(),
        )
        samples.append(sample)
    # `ground_truth` has the masks of the test split, so that they are unused in the others.
    if split not in ("train", "validation"):
        used = {mask for found in pairs.values() for mask in found}
        unused = [os.path.relpath(truth / one, folder) for one in known if one not in used]
        issues += [Issue("mask_unused", one) for one in unused]
    issues = [one._replace(file=relative(folder / one.file, root)) for one in issues]
    anomalous = sum(sample.label for sample in samples)
    if not images:
        issues.append(Issue("folder_empty", relative(place, root)))
    elif (not labelled and not pairs) or (anomalous == len(images) and not known):
        state = "anomalous" if anomalous else "normal"
        counted = f"{plural(len(images), 'image')}, all counted as {state}"
        issues.append(Issue("label_unknown", relative(place, root), counted))
    elif anomalous and not known:
        detail = f"{anomalous} of {plural(len(images), 'image')}"
        issues.append(Issue("masks_missing", relative(place, root), detail))
    return samples, issues


def _list_part(
    folder: pathlib.Path,
    place: pathlib.Path,
    split: str | None,
    masks: PathLike | None,
    normal: set[str],
    include_masks: bool,
) -> tuple[list[str], dict[str, str | None], list[Issue]]:
    """Lists the images of a category, its masks (see `find_masks`) and issues, relative to its folder."""
    issues: list[Issue] = []
    # Each folder by itself: `walk` visits a folder once, and links in one split may lead to another.
    splits = [one for one in list_folders(folder) if one == place or plain(one.name) not in SPLITS]
    places = [folder] if split is None else splits
    files = [one for below in places for one in _list_images(folder, issues, below)]
    if masks is not None:
        # The given folder of masks may be below the folder of the images.
        inside = f"{relative(masks, folder)}/"
        files = [one for one in files if not one.startswith(inside)]
    known, unusual = ({}, {}) if include_masks else find_masks(folder, files, normal)
    start = "" if split is None else f"{place.name}/"
    # Folders beside the split are listed for their masks; their other files are not part of the split.
    images = [one for one in files if one.startswith(start) and one not in known]
    if split not in (None, "train", "validation"):
        beside = [one for one in files if not one.startswith(start) and one not in known]
        issues += [Issue("image_beside", one) for one in beside]
        issues += _find_beside(folder, list_folders(folder))
    if masks is not None:
        issues += [Issue("mask_unused", one) for one in known]
        known = dict.fromkeys(_list_images(masks), "")
    elif unusual:
        suspect, other = next(iter(unusual.items()))
        raise UserError(
            f"{folder / suspect} looks like a folder of masks. Its files have few gray values"
            + (f" and the same names as files in {other!r}" if other else "")
            + ". If they are masks, name them after their images and the folder ground_truth, or set the key"
            " `masks` in config.data. If they are images, set the key `include_masks`."
        )
    return images, known, issues


def _judge(masks: tuple[str, ...]) -> int:
    try:
        return int(bool(masks) and bool(decode_mask(masks).any()))
    except UnreadableImage:
        return 1  # someone drew a mask, so the image is anomalous; the loader reports the mask


def _list_images(
    root: PathLike,
    ignored: list[Issue] | None = None,
    start: PathLike | None = None,
    skip: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Lists the images below a folder (see `walk`), sorted; adds all other files to `ignored`."""
    others: list[Issue] | None = None if ignored is None else []
    images = []
    for name in walk(root, start, skip=skip, ignored=others):
        if is_image(name):
            images.append(name)
        elif others is not None:
            suffix = os.path.splitext(name)[1].lower()
            kind = "document" if suffix in DOCUMENTS else "format_unsupported"
            others.append(Issue(kind, name, suffix))
    if ignored is not None and others is not None:
        ignored += sorted(others)
    return sorted(images)


def _search(folder: str, include_masks: bool) -> Found:
    """Lists the images of a folder, without its masks unless it contains nothing else."""
    ignored: list[Issue] = []
    everything = _list_images(folder, ignored)
    masks = {} if include_masks else find_masks(folder, everything, NORMAL_FOLDERS)[0]
    images = [one for one in everything if one not in masks]
    if images:
        ignored = [*(Issue("mask_ignored", one) for one in masks), *ignored]
    # A folder of masks alone is scored: a user who names it means these files.
    return Found(
        [os.path.join(folder, one) for one in images or everything],
        [issue._replace(file=os.path.join(folder, issue.file)) for issue in ignored],
    )
