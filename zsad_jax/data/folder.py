"""A folder of images as a dataset: flat, with masks beside, or in MVTec's layout."""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from zsad_jax.data import issues
from zsad_jax.data.base import Sample, Samples
from zsad_jax.data.issues import Issue
from zsad_jax.data.mask_files import MASK_STEM, MaskFiles
from zsad_jax.data.preprocess import UnreadableImage, decode_mask
from zsad_jax.data.protocol import prompt_name as default_prompt_name
from zsad_jax.errors import UserError
from zsad_jax.files import PathLike

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
NORMAL_FOLDERS = ("good", "ok", "normal", "healthy", "non_defective")
NORMAL_BESIDE = (("no", "yes"), ("negative", "positive"))  # normal only where its opposite is
MASK_FOLDERS = ("ground_truth", "groundtruth", "masks", "mask")
SPLITS = ("train", "validation", "test")
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

    Folders are searched with all their subfolders. Ground truth in them (folders `ground_truth` or `masks`,
    files `<stem>_mask.*` beside their image), hidden files and files of other types are ignored and reported.
    A file that is named itself, or matched by a pattern, is never ignored.

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
    category. Masks are paired by name (`000.png` with `000_mask.png` or `000.*`), never by position.

    An image is normal when a folder that it lies in is one of `normal_folders`, anomalous otherwise.
    Where no such folder exists, masks tell (no mask, or an all-zero one: normal); where there are no masks
    either, nothing is known: label 0 and has_mask False, and a fault says so. Links to folders are
    followed, to each folder once.

    Args:
      path: the folder.
      name: of the dataset; None = the folder's name.
      category: of a single category; None = its folder's name.
      prompt_name: how every category is called in prompts; None = derived from the category in
        MVTec's layout, "object" otherwise.
      prompt_names: the same per category.
      masks: the folder of the masks of a single category; None = a folder `ground_truth` or `masks` in
        its place, or files `<stem>_mask.*` beside the images.
      split: which folder of MVTec's layout is read.
      normal_folders: names of folders with normal images, in any spelling; None = the usual ones,
        `NORMAL_FOLDERS`, and those of `NORMAL_BESIDE` where the opposite is.

    Raises:
      UserError: the folder is missing, has no images or no such split, no folder is one of
        `normal_folders`, or a mask fits two images.
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
    normal = _find_normal(root, classes, normal_folders)
    parts = [
        _read_part(root, one, split, category or _name(one, root), masks, normal) for one in classes
    ]
    if not parts:
        prompt_name = prompt_name or "object"
        parts = [_read_part(root, root, None, category or name, masks, normal)]
    samples = [sample for part, _ in parts for sample in part]
    faults = [fault for _, part in parts for fault in part]
    if not samples:
        raise UserError(_why_empty(root))
    _report(name, samples, faults)
    for i, sample in enumerate(samples):
        called = (prompt_names or {}).get(sample.category) or prompt_name
        called = called or default_prompt_name(sample.category, dataset=name)
        samples[i] = dataclasses.replace(sample, prompt_name=called)
    return Samples(name, samples, faults=faults)


def _why_empty(root: pathlib.Path) -> str:
    """Why a folder has no samples, and what may be meant."""
    everything = _list_images(root)
    if everything and not _without_masks(everything):
        place = root / os.path.dirname(everything[0])
        return (
            f"{root} holds ground truth only, no image; if these are images, give {place} itself."
        )
    return f"No images found in {root} (known: {', '.join(EXTENSIONS)})."


def list_splits(path: PathLike) -> tuple[str, ...]:
    """The splits of a folder in MVTec's layout, of one category or several; () in any other."""
    places = [pathlib.Path(path), *_subfolders(pathlib.Path(path))]
    return tuple(split for split in SPLITS if any(_subfolder(one, (split,)) for one in places))


def _find_classes(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The folders of the categories in MVTec's layout; none in any other."""
    if _subfolder(root, (split,)):
        return [root]
    # A link to a category is that category, not one more.
    found = sorted(_subfolders(root), key=lambda one: (one.is_symlink(), one.name))
    classes = {one.resolve(): one for one in reversed(found) if _subfolder(one, (split,))}
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
    places = [one for one in splits if _plain(one.name) not in MASK_FOLDERS] or [root]
    there = {
        _plain(part): part
        for place in places
        for image in _without_masks(_list_images(place))
        for part in pathlib.PurePosixPath(image).parts[:-1]
    }
    if not given:
        return {*NORMAL_FOLDERS, *(name for name, other in NORMAL_BESIDE if other in there)}
    given = [given] if isinstance(given, str) else [str(name) for name in given]
    normal = {_plain(name) for name in given}
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
    category: str,
    masks: PathLike | None,
    normal: set[str],
) -> tuple[list[Sample], list[Issue]]:
    """The samples of one category; `split` is None for a folder without layout."""
    images_root = folder if split is None else folder / (_subfolder(folder, (split,)) or "")
    inside = "" if masks is None else os.path.relpath(masks, images_root).replace(os.sep, "/")
    everything = [
        one for one in _list_images(images_root) if not inside or not one.startswith(f"{inside}/")
    ]
    images = _without_masks(everything)
    pairs = _find_masks(folder, images_root, masks, sorted(set(everything) - set(images)))
    labelled = split is not None or any(normal & _folders(image) for image in images)
    samples, faults = [], []
    for image in images:
        found = pairs.of(image)
        file_name = (images_root / image).relative_to(root).as_posix()
        label, has_mask = _judge(image, found, labelled, bool(pairs), normal)
        if label and not has_mask and pairs:
            faults.append(Issue("mask_missing", file_name))
        sample = Sample(
            image=str(images_root / image),
            mask=(found if len(found) > 1 else found[0]) if label and found else None,
            has_mask=has_mask,
            label=label,
            category=category,
            defect=_defect(image, label, labelled, has_mask),
            file_name=file_name,
        )
        samples.append(sample)
    if not images:
        faults.append(Issue("folder_empty", str(images_root)))
    elif not pairs:
        faults += _miss_masks(str(images_root), samples, labelled)
    if split != "train":
        faults += [Issue("mask_unused", mask) for mask in pairs.unused()]
    return samples, faults


def _miss_masks(folder: str, samples: Sequence[Sample], labelled: bool) -> Iterator[Issue]:
    """Reports what is unknown of a category without any mask."""
    anomalous = sum(sample.label for sample in samples)
    if not labelled or anomalous == len(samples):
        kind = "anomalous" if anomalous else "normal"
        yield Issue("label_unknown", folder, f"all {len(samples)} images count as {kind}")
    elif anomalous:
        yield Issue("masks_missing", folder, f"{anomalous} of {len(samples)} images")


def _find_masks(
    folder: pathlib.Path, images_root: pathlib.Path, given: PathLike | None, beside: Sequence[str]
) -> MaskFiles:
    """The masks of a category: those given, else in a folder of the known names, else beside the images."""
    if given is not None:
        if not os.path.isdir(given):
            raise UserError(f"There is no folder of masks {os.fspath(given)}.")
        return MaskFiles(pathlib.Path(given), _list_images(given))
    for place in (folder, images_root):
        name = _subfolder(place, MASK_FOLDERS)
        if name is not None:
            return MaskFiles(place / name, _list_images(place / name))
    return MaskFiles(images_root, beside)


def _judge(
    image: str, masks: tuple[str, ...], labelled: bool, any_masks: bool, normal: set[str]
) -> tuple[int, bool]:
    """The label of an image, and whether pixel metrics may use it."""
    if labelled:
        label = int(not normal & _folders(image))
        return label, not label or bool(masks)
    if not any_masks:
        return 0, False
    try:
        return int(bool(masks) and bool(decode_mask(masks).any())), True
    except UnreadableImage:
        return 1, True  # the loader says what is wrong with the mask


def _defect(image: str, label: int, labelled: bool, has_mask: bool) -> str:
    if not label:
        return "good" if labelled or has_mask else ""
    folders = pathlib.PurePosixPath(image).parts[:-1]
    return folders[-1] if folders and labelled else ""


def _report(name: str, samples: Sequence[Sample], faults: Sequence[Issue]) -> None:
    anomalous = sum(sample.label for sample in samples)
    logging.info("%s: %d images, %d of them anomalous.", name, len(samples), anomalous)
    for kind in issues.group(faults):
        logging.warning("%s: %s", name, issues.summarize(kind))


def _folders(image: str) -> set[str]:
    return {_plain(part) for part in pathlib.PurePosixPath(image).parts[:-1]}


def _name(folder: pathlib.Path, root: pathlib.Path) -> str:
    """The name of a category's folder; the root may be given as a dot."""
    return folder.resolve().name if folder == root else folder.name


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not _is_hidden(one.name))


def _subfolder(folder: pathlib.Path, names: Sequence[str]) -> str | None:
    """The name on disk of the subfolder that has one of these names, in any spelling."""
    wanted = {_plain(name) for name in names}
    return next((one.name for one in _subfolders(folder) if _plain(one.name) in wanted), None)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not _is_hidden(name)


def _list_images(root: PathLike, ignored: list[Issue] | None = None) -> list[str]:
    """All images below a folder, relative to it, with "/" between folders, sorted.

    Links are followed after the folders themselves, and none to a folder that was seen or holds the root.
    Other files, and hidden folders as a whole, are added to `ignored`.
    """
    found: list[str] = []
    others: list[Issue] = []
    seen = {str(one) for one in pathlib.Path(root).resolve().parents}
    starts = [os.fspath(root)]
    for start in starts:
        for folder, subfolders, files in os.walk(start):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            place = os.path.relpath(folder, root)
            hidden = [one for one in (*subfolders, *files) if _is_hidden(one)]
            others += [Issue("hidden", os.path.join(place, one)) for one in hidden]
            subfolders[:] = sorted(one for one in subfolders if not _is_hidden(one))
            below = [os.path.join(folder, one) for one in subfolders]
            starts += [one for one in below if os.path.islink(one)]
            for name in files:
                if _is_image(name):
                    found.append(os.path.join(place, name))
                elif not _is_hidden(name):
                    suffix = os.path.splitext(name)[1].lower()
                    others.append(Issue("format_unsupported", os.path.join(place, name), suffix))
    if ignored is not None:
        ignored += sorted(one._replace(file=_to_posix(one.file)) for one in others)
    return sorted(map(_to_posix, found))


def _to_posix(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _without_masks(images: Sequence[str]) -> list[str]:
    """Leaves ground truth out."""
    stems = {str(pathlib.PurePosixPath(image).with_suffix("")) for image in images}

    def is_mask(image: str) -> bool:
        file = pathlib.PurePosixPath(image)
        match = MASK_STEM.fullmatch(file.stem)
        beside = match is not None and str(file.with_name(match["stem"])) in stems
        return beside or any(_plain(part) in MASK_FOLDERS for part in file.parts[:-1])

    return [image for image in images if not is_mask(image)]


def _search(folder: str) -> Found:
    """The images of a folder that is to be predicted, ground truth where there is nothing else."""
    ignored: list[Issue] = []
    everything = _list_images(folder, ignored)
    images = _without_masks(everything) or everything
    masks = [Issue("mask_ignored", one) for one in everything if one not in set(images)]
    return Found(
        [os.path.join(folder, one) for one in images],
        [issue._replace(file=os.path.join(folder, issue.file)) for issue in [*masks, *ignored]],
    )
