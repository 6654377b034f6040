"""Layouts of benchmarks: those that several share, and where to find that of any other."""

import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from zsad_jax.data.benchmarks import facts
from zsad_jax.data.benchmarks.facts import DATASETS, FolderPair
from zsad_jax.data.benchmarks.listing import (
    Listing,
    Path,
    find_inner_folder,
    masks_by_stem,
    sort_by_number,
)
from zsad_jax.data.issues import Issue
from zsad_jax.data.meta_json import read_meta_json, read_splits
from zsad_jax.data.walk import list_folders, list_images


class Layout(NamedTuple):
    """The way in which the files of a benchmark are found.

    Attributes:
      is_root: whether a folder is the root of the extracted archives, and of no other benchmark.
      list_files: lists all samples below a root without reading them; raises `UserError` for unknown files.
      is_given: whether a folder that the user names may be the root, for layouts that several benchmarks share
        (`images` beside `masks`); True wherever `is_root` is. None: the same as `is_root`.
      excluded: patterns in addition to `Facts.excluded`, for the files below a root.
    """

    is_root: Callable[[Path], bool]
    list_files: Callable[[Path], Listing]
    is_given: Callable[[Path], bool] | None = None
    excluded: Callable[[Path], Sequence[str]] = lambda root: ()

    def accepts(self, folder: Path) -> bool:
        """Returns whether a folder that the user names may be the root."""
        return (self.is_given or self.is_root)(folder)


def find_layout(name: str) -> Layout:
    """Returns the layout of a benchmark: a shared one, or `LAYOUT` of the module with the benchmark's name."""
    match DATASETS[name].layout:
        case facts.MvtecLayout() as options:
            return mvtec_layout(name, options)
        case facts.TwoFolders() as options:
            return two_folders(name, options)
        case facts.PairedFolders() as options:
            return paired_folders(name, options)
    return importlib.import_module(f"{__package__}.{name}").LAYOUT


def mvtec_layout(name: str, options: facts.MvtecLayout) -> Layout:
    """Makes the layout of MVTec AD, which many industrial sets have adopted."""

    def is_root(folder: Path) -> bool:
        return any(
            (folder / category / mark).is_dir()
            for category in DATASETS[name].categories
            for mark in options.marks
        )

    def list_files(root: Path) -> Listing:
        """Lists category by category, then by kind of defect and file name."""
        listing = Listing(root)
        for category in DATASETS[name].categories:
            masks = root / category / options.ground_truth
            for split, below in options.splits.items():
                for folder in list_folders(root / category / below):
                    fields = {"category": category, "defect": folder.name}
                    if folder.name == options.normal:
                        fields["defect"] = "good"
                        listing.add(split, listing.unmasked(folder, label=0, **fields))
                    # In MVTec AD 2 the folder of the masks is inside the test split.
                    elif folder != masks:
                        listing.add(split, listing.masked(folder, masks / folder.name, **fields))
        return listing

    # Masks of normal images are empty, where there are any.
    return Layout(
        is_root, list_files, excluded=lambda root: (f"*/{options.ground_truth}/{options.normal}",)
    )


def two_folders(name: str, options: facts.TwoFolders) -> Layout:
    """Makes the layout of sets whose folder of an image is its label; other folders have no label."""

    def find_images(root: Path, names: Sequence[str]) -> Path:
        """Finds the folder of the images of one kind; if there is none, the result does not exist."""
        kind = find_inner_folder(root, *names) or root / names[0]
        return find_inner_folder(kind, "images", "image") or kind

    def is_root(folder: Path) -> bool:
        anomalous = list_images(find_images(folder, options.anomalous))
        # More than half: copies contain single files of other names.
        fitting = sum(bool(re.fullmatch(options.stem, path.stem)) for path in anomalous)
        return fitting > len(anomalous) / 2 and bool(
            list_images(find_images(folder, options.normal))
        )

    def list_files(root: Path) -> Listing:
        listing = Listing(root)
        # By name: Br35H also has a folder `pred` of unlabeled images.
        normal, anomalous = (
            # Not even normal images count in pixel metrics, which need both kinds of pixels.
            listing.unmasked(
                find_images(root, names), label=label, category=name, defect=defect, has_mask=False
            )
            for label, names, defect in (
                (0, options.normal, "good"),
                (1, options.anomalous, options.defect),
            )
        )
        if options.drawn:
            listing.add_drawn(normal, anomalous)
        else:
            listing.add("test", normal + anomalous)
        return listing

    return Layout(is_root, list_files)


def paired_folders(name: str, options: facts.PairedFolders) -> Layout:
    """Makes the layout of sets of anomalous images only: a folder of images and one of their masks.

    Images are in the folder or in those directly below it; they are sorted by the numbers in their names.
    """

    def is_given(folder: Path) -> bool:
        return has_pair(folder, options.folders["test"])

    def is_root(folder: Path) -> bool:
        # `images` beside `masks` is the layout of many sets: without own names, the parent folder decides.
        if options.own and has_pair(folder, options.own):
            return True
        return is_given(folder) and (not options.parent or is_named(folder, options.parent))

    def list_files(root: Path) -> Listing:
        listing = Listing(root)
        for split, names in options.folders.items():
            images, masks = (find_inner_folder(root, *either) for either in names)
            if images is None:
                continue
            paths = [path for one in (images, *list_folders(images)) for path in list_images(one)]
            found = listing.pair(
                sort_by_number(paths),
                masks_by_stem(masks, options.mask_suffix) if masks else {},
                image_suffix=options.image_suffix,
                category=name,
                defect=options.defect,
            )
            listing.add(split, found)
        return listing

    return Layout(is_root, list_files, is_given)


def has_pair(folder: Path, names: FolderPair) -> bool:
    """Returns whether a folder has one of images and one of masks, directly below it."""
    return all(find_inner_folder(folder, *either) is not None for either in names)


def is_named(folder: Path, pattern: str) -> bool:
    """Returns whether the name of a folder matches, which separates benchmarks of one layout."""
    name = os.path.basename(os.path.abspath(folder))
    return re.fullmatch(pattern, name, re.IGNORECASE) is not None


def list_meta_json(name: str, root: Path) -> Listing:
    """Lists a root with a meta.json, the community's form; a benchmark's only category keeps its own name.

    Raises:
      UserError: the file cannot be read, or has no images to test on.
    """
    categories = DATASETS[name].categories
    listing = Listing(root)
    splits = read_splits(lambda split: read_meta_json(root, name=name, split=split))
    for split, found in splits.items():
        listing.issues += found.issues
        place = {category: number for number, category in enumerate(found.categories)}
        # Records are written category by category, and an entry may name another category than its list.
        for sample in sorted(found, key=lambda sample: place[sample.category]):
            if not Path(str(sample.image)).is_file():
                listing.issues.append(Issue("image_missing", sample.file_name))
                continue
            # HeadCT is `brain` in AnomalyCLIP's copy and `headct` in AdaCLIP's.
            category = categories[0] if len(categories) == 1 else sample.category
            listing.add(split, [dataclasses.replace(sample, category=category)])
    return listing
