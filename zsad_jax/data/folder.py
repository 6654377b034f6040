"""A folder of images as a dataset: flat, with masks beside, or in MVTec's layout."""

import dataclasses
import glob
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from absl import logging

from zsad_jax.data import remarks
from zsad_jax.data.base import Fault, Sample, Samples
from zsad_jax.data.preprocess import UnreadableImage, decode_mask
from zsad_jax.data.protocol import prompt_name as default_prompt_name
from zsad_jax.errors import UserError
from zsad_jax.files import PathLike

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".ppm",
    ".pgm",
    ".jp2",
)
NORMAL_FOLDERS = ("good", "ok", "normal")
MASK_FOLDERS = ("ground_truth", "groundtruth", "masks", "mask")
SPLITS = ("train", "validation", "test")

_MASK_STEM = re.compile(r"(?P<stem>.+)_(mask|label|gt|segmentation)\d*", re.IGNORECASE)


def find_images(paths: Sequence[PathLike]) -> list[str]:
    """Lists the images that a person means by files, folders and glob patterns.

    Folders are searched with all their subfolders, leaving out ground truth (folders `ground_truth` or
    `masks`, files `<stem>_mask.*` beside their image). A file named outright is kept whatever its type,
    so that it is reported when it cannot be read.

    Returns:
      Paths without repetition, in the order of `paths`, sorted within each.

    Raises:
      UserError: a path does not exist, or there is no image at all.
    """
    found: dict[str, str] = {}
    for path in [os.fspath(one) for one in paths]:
        if os.path.isdir(path):
            images = [os.path.join(path, one) for one in _without_masks(_list_images(path))]
        elif os.path.exists(path):
            images = [path]
        elif glob.has_magic(path):
            images = _expand(path)
        else:
            raise UserError(f"There is no file or folder {path}.")
        if not images:
            logging.warning("No images in %s.", path)
        for image in images:
            found.setdefault(os.path.realpath(image), image)
    if not found:
        raise UserError(
            f"No images found in {', '.join(os.fspath(one) for one in paths)} (known: {', '.join(EXTENSIONS)})."
        )
    return list(found.values())


def read_folder(
    path: PathLike,
    *,
    name: str | None = None,
    category: str | None = None,
    prompt_name: str | None = None,
    prompt_names: Mapping[str, str] | None = None,
    masks: PathLike | None = None,
    split: str = "test",
    normal_folders: Sequence[str] = NORMAL_FOLDERS,
) -> Samples:
    """Reads a folder of images as a dataset.

    Three layouts are told apart: MVTec's (`<category>/test/<defect>/…` with `<category>/ground_truth`),
    one category of it (`test/<defect>/…`), and any other, where all images in all subfolders are one
    category. Masks are paired by name (`000.png` with `000_mask.png` or `000.*`), never by position.

    An image is normal when a folder that it lies in is one of `normal_folders`, anomalous otherwise.
    Where no such folder exists, masks tell (no mask, or an all-zero one: normal); where there are no masks
    either, nothing is known: label 0 and has_mask False.

    Args:
      path: the folder.
      name: of the dataset; None = the folder's name.
      category: of a single category; None = the folder's name.
      prompt_name: how every category is called in prompts; None = derived from the category in
        MVTec's layout, "object" otherwise.
      prompt_names: the same per category.
      masks: the folder of the masks; None = a folder `ground_truth` or `masks` in its place, or
        files `<stem>_mask.*` beside the images.
      split: which folder of MVTec's layout is read.
      normal_folders: names of folders with normal images, in any case.

    Raises:
      UserError: the folder is missing or has no images, or a mask fits two images.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    name = name or root.resolve().name
    normal = {folder.lower() for folder in normal_folders}
    if _subfolder(root, (split,)):
        parts = [_read_part(root, root, split, category or root.resolve().name, masks, normal)]
    else:
        classes = [one for one in _subfolders(root) if _subfolder(one, (split,))]
        parts = [_read_part(root, one, split, one.name, None, normal) for one in classes]
    if not parts:
        prompt_name = prompt_name or "object"
        parts = [_read_part(root, root, None, category or name, masks, normal)]
    samples = [sample for part, _ in parts for sample in part]
    faults = [fault for _, part in parts for fault in part]
    if not samples:
        raise UserError(f"No images found in {root} (known: {', '.join(EXTENSIONS)}).")
    _report(name, samples, faults)
    for i, sample in enumerate(samples):
        called = (prompt_names or {}).get(sample.category) or prompt_name
        called = called or default_prompt_name(sample.category, dataset=name)
        samples[i] = dataclasses.replace(sample, prompt_name=called)
    return Samples(name, samples, faults=faults)


def list_splits(path: PathLike) -> tuple[str, ...]:
    """The splits of a folder in MVTec's layout, of one category or several; () in any other."""
    places = [pathlib.Path(path), *_subfolders(pathlib.Path(path))]
    return tuple(split for split in SPLITS if any(_subfolder(one, (split,)) for one in places))


def _read_part(
    root: pathlib.Path,
    folder: pathlib.Path,
    split: str | None,
    category: str,
    masks: PathLike | None,
    normal: set[str],
) -> tuple[list[Sample], list[Fault]]:
    """The samples of one category; `split` is None for a folder without layout."""
    images_root = folder if split is None else folder / (_subfolder(folder, (split,)) or "")
    everything = _list_images(images_root)
    images = _without_masks(everything)
    pairs = _find_masks(folder, images_root, masks, sorted(set(everything) - set(images)))
    labelled = split is not None or any(normal & _folders(image) for image in images)
    samples, faults = [], []
    for image in images:
        found = pairs.of(image)
        file_name = (images_root / image).relative_to(root).as_posix()
        label, has_mask = _judge(image, found, labelled, bool(pairs), normal)
        if label and not has_mask and pairs:
            faults.append(Fault(file_name, "its mask is missing; pixel metrics leave it out"))
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
        faults.append(Fault(str(images_root), "there are no images in this folder"))
    anomalous = sum(sample.label for sample in samples)
    if anomalous and not pairs:
        reason = f"there are no masks; pixel metrics leave its {anomalous} anomalous images out"
        faults.append(Fault(str(folder), reason))
    if split != "train":
        faults += [Fault(mask, "this mask belongs to no image") for mask in pairs.unused()]
    return samples, faults


def _find_masks(
    folder: pathlib.Path, images_root: pathlib.Path, given: PathLike | None, beside: Sequence[str]
) -> "_Masks":
    """The masks of a category: those given, else in a folder of the known names, else beside the images."""
    if given is not None:
        if not os.path.isdir(given):
            raise UserError(f"There is no folder of masks {os.fspath(given)}.")
        return _Masks(pathlib.Path(given), _list_images(given))
    for place in (folder, images_root):
        name = _subfolder(place, MASK_FOLDERS)
        if name is not None:
            return _Masks(place / name, _list_images(place / name))
    return _Masks(images_root, beside)


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


def _report(name: str, samples: Sequence[Sample], faults: Sequence[Fault]) -> None:
    anomalous = sum(sample.label for sample in samples)
    logging.info("%s: %d images, %d of them anomalous.", name, len(samples), anomalous)
    for kind in remarks.group(faults):
        logging.warning("%s: %s", name, kind)


class _Masks:
    """Mask files by the name of the image that they belong to."""

    def __init__(self, root: pathlib.Path, files: Sequence[str]):
        self._root = root
        self._files = files
        self._used: dict[str, str] = {}
        self._by_key: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            for key in self._keys(pathlib.PurePosixPath(file)):
                self._by_key[key].append(file)

    def __bool__(self) -> bool:
        return bool(self._files)

    @staticmethod
    def _keys(file: pathlib.PurePosixPath) -> set[str]:
        """The names an image may have: the mask's own, without `_mask`, and that of its folder.

        The last is MVTec LOCO's way: several masks `<stem>/000.png` for one image.
        """
        match = _MASK_STEM.fullmatch(file.stem)
        own = {str(file.with_suffix(""))}
        bare = {str(file.with_name(match["stem"]))} if match else set()
        folder = {str(file.parent)} if len(file.parts) > 1 else set()
        return own | bare | folder

    def of(self, image: str) -> tuple[str, ...]:
        """The masks of an image; leading folders that only the images have do not matter."""
        parts = pathlib.PurePosixPath(image).with_suffix("").parts
        for start in range(len(parts)):
            files = self._by_key.get("/".join(parts[start:]), [])
            for file in files:
                if self._used.setdefault(file, image) != image:
                    raise UserError(
                        f"The mask {self._root / file} fits two images, {self._used[file]} and {image}; "
                        "put the masks into the same subfolders as the images."
                    )
            if files:
                return tuple(str(self._root / file) for file in files)
        return ()

    def unused(self) -> list[str]:
        """Masks that no image has asked for."""
        return [str(self._root / file) for file in self._files if file not in self._used]


def _folders(image: str) -> set[str]:
    return {part.lower() for part in pathlib.PurePosixPath(image).parts[:-1]}


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not _is_hidden(one.name))


def _subfolder(folder: pathlib.Path, names: Sequence[str]) -> str | None:
    """The name on disk of the subfolder that has one of these names, in any spelling."""
    wanted = {_plain(name) for name in names}
    return next((one.name for one in _subfolders(folder) if _plain(one.name) in wanted), None)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not _is_hidden(name)


def _list_images(root: PathLike) -> list[str]:
    """All images below a folder, relative to it, with "/" between folders, sorted."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [one for one in subfolders if not _is_hidden(one)]
        found += [
            os.path.relpath(os.path.join(folder, one), root) for one in files if _is_image(one)
        ]
    return sorted(one.replace(os.sep, "/") for one in found)


def _without_masks(images: Sequence[str]) -> list[str]:
    """Leaves ground truth out, unless that leaves nothing."""
    stems = {str(pathlib.PurePosixPath(image).with_suffix("")) for image in images}

    def is_mask(image: str) -> bool:
        file = pathlib.PurePosixPath(image)
        match = _MASK_STEM.fullmatch(file.stem)
        beside = match is not None and str(file.with_name(match["stem"])) in stems
        return beside or any(_plain(part) in MASK_FOLDERS for part in file.parts[:-1])

    return [image for image in images if not is_mask(image)] or list(images)


def _expand(pattern: str) -> list[str]:
    found: list[str] = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(match):
            found += [os.path.join(match, one) for one in _without_masks(_list_images(match))]
        elif _is_image(os.path.basename(match)):
            found.append(match)
    return found
