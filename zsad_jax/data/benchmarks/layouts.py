"""What the layouts of benchmarks have in common: finding images, pairing masks, cutting, choosing normals."""

import dataclasses
import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from zsad_jax.data import walk
from zsad_jax.data.benchmarks.records import image_to_png, mask_to_png
from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Lazy, Sample, as_mask
from zsad_jax.data.issues import Issue
from zsad_jax.data.meta_json import read_meta_json, read_splits
from zsad_jax.data.preprocess import decode_mask, open_image
from zsad_jax.data.walk import list_folders, list_images

Path = pathlib.Path
Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels; the last two are outside
T = TypeVar("T")

# Papers test on a quarter of the normal images of some sets, drawn with this seed by scikit-learn from files
# in the order of the disk. Who was drawn cannot be known; we draw from our own sorted order.
TEST_SHARE = 0.25
SEED = 42


@dataclasses.dataclass
class Listing:
    """What was found of a benchmark, no image read yet.

    Attributes:
      samples: per split, in the order in which they are written, category by category. `prompt_name` may
        be left out: the protocol knows it.
      known: further files that belong to the benchmark: those that parts are cut of, and those that are left
        out for what is known of them.
      issues: what does not belong together.
    """

    samples: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)
    known: set[str] = dataclasses.field(default_factory=set)
    issues: list[Issue] = dataclasses.field(default_factory=list)

    def add(self, split: str, samples: Iterable[Sample]) -> None:
        """Appends samples to a split; none make no split, for an empty one cannot be written."""
        found = list(samples)
        if found:
            self.samples.setdefault(split, []).extend(found)


@dataclasses.dataclass(frozen=True)
class Crop(Lazy):
    """A rectangle of an image, as a PNG; of ground truth, with 255 where a defect is."""

    path: Path
    box: Box
    is_mask: bool = False

    def read(self) -> bytes:
        """Cuts the rectangle out and encodes it."""
        left, upper, right, lower = self.box
        if self.is_mask:
            return mask_to_png(decode_mask(str(self.path))[upper:lower, left:right])
        return image_to_png(open_image(self.path).image.crop(self.box))


def find_folder(parent: Path, *names: str) -> Path | None:
    """The subfolder that has one of these names, in any case; the names come in order of preference.

    One that holds a folder of its own name, as in Kaggle's copies, stands for that.
    """
    found = walk.find_folder(parent, *names)
    return found and (find_folder(found, found.name) or found)


def list_unmasked(root: Path, images: Path, *, label: int, **fields: Any) -> list[Sample]:
    """The images of a folder, without ground truth: normal ones, or all of a set that has no masks.

    Args:
      root: folder that file names are relative to.
      images: folder of images.
      label: of all of them; a normal image counts in pixel metrics, an anomalous one without mask does not.
      fields: further fields of the samples, as category and defect.
    """
    return [
        Sample(
            image=str(path),
            file_name=name_in(root, path),
            label=label,
            **{"has_mask": not label, **fields},
        )
        for path in list_images(images)
    ]


def list_pairs(
    root: Path,
    images: Path,
    masks: Path,
    issues: list[Issue],
    *,
    mask_suffix: str = "_mask",
    **fields: Any,
) -> list[Sample]:
    """The anomalous images of a folder with the masks of another; paired by stem, never by position.

    The masks of `000.png` are `000.*`, `000_mask.*`, `000_mask1.*` and all in a folder `000`; several are
    joined.

    Args:
      root: folder that file names are relative to.
      images: folder of images.
      masks: folder of their masks.
      issues: images without mask and masks without image are added here.
      mask_suffix: what a mask's stem may have after its image's.
      fields: further fields of the samples, as category and defect.
    """
    return pair(root, list_images(images), masks_by_stem(masks, mask_suffix), issues, **fields)


def masks_by_stem(masks: Path, mask_suffix: str = "_mask") -> dict[str, list[Path]]:
    """The masks in a folder by the stem of the image that they belong to."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(masks):
        match = re.fullmatch(rf"(.+){re.escape(mask_suffix)}\d*", path.stem)
        found[match[1] if match and mask_suffix else path.stem].append(path)
    for folder in list_folders(masks):
        found[folder.name] += list_images(folder)
    return {stem: paths for stem, paths in found.items() if paths}


def pair(
    root: Path,
    images: Iterable[Path],
    masks: Mapping[str, Sequence[Path]],
    issues: list[Issue],
    *,
    image_suffix: str = "",
    **fields: Any,
) -> list[Sample]:
    """Anomalous samples of images and their masks, by stem; see `list_pairs`.

    `image_suffix` is what the stem of an image may have after that which its masks are known by.
    """
    unused = dict(masks)
    samples = []
    for path in images:
        found = unused.pop(path.stem.removesuffix(image_suffix), ())
        if not found:
            issues.append(Issue("mask_missing", name_in(root, path)))
        samples.append(
            Sample(
                image=str(path),
                mask=as_mask([str(mask) for mask in found]),
                has_mask=bool(found),
                label=1,
                file_name=name_in(root, path),
                **fields,
            )
        )
    for paths_left in unused.values():
        issues += [Issue("mask_unused", name_in(root, mask)) for mask in paths_left]
    return samples


def cut(
    sample: Sample, boxes: Callable[[tuple[int, int]], Iterable[Box]], listing: Listing
) -> list[Sample]:
    """Cuts an image into parts; a part is anomalous where its ground truth is not empty.

    The image and its masks are decoded. One that cannot be used has no parts and is added to the issues.
    Nothing is known of one that lacks its ground truth (`has_mask` False): it has no parts either.

    Args:
      sample: of files; its masks are joined.
      boxes: from the image's (width, height), in pixels, to the parts.
      listing: learns of the image and its masks, and of what is wrong with them.

    Returns:
      The parts, named `<stem>_0.png`, `<stem>_1.png`, …
    """
    found = examine(sample)
    masks = sample.masks
    listing.known |= {str(path) for path in (sample.image, *masks)}
    listing.issues += found.issues
    kinds = {issue.kind for issue in found.issues}
    if kinds - {"mask_full"} or found.size is None or not sample.has_mask:
        return []
    parts = []
    for index, box in enumerate(boxes(found.size)):
        left, upper, right, lower = box
        anomalous = found.mask is not None and bool(found.mask[upper:lower, left:right].any())
        cropped = tuple(Crop(Path(str(mask)), box, is_mask=True) for mask in masks if anomalous)
        parts.append(
            dataclasses.replace(
                sample,
                image=Crop(Path(str(sample.image)), box),
                mask=as_mask(cropped),
                label=int(anomalous),
                defect=sample.defect if anomalous else "good",
                file_name=f"{Path(sample.file_name).with_suffix('').as_posix()}_{index}.png",
            )
        )
    return parts


def split_normals(samples: Sequence[T], *, share: float = TEST_SHARE) -> tuple[list[T], list[T]]:
    """Draws the share of the normal images that papers test on; (chosen, left), each in the given order.

    The number is rounded up, as scikit-learn does it, so that it is the published one.
    """
    count = math.ceil(len(samples) * share)
    chosen = set(np.random.default_rng(SEED).permutation(len(samples))[:count].tolist())
    return (
        [one for index, one in enumerate(samples) if index in chosen],
        [one for index, one in enumerate(samples) if index not in chosen],
    )


def list_meta_json(root: Path, name: str, only: str | None = None) -> Listing:
    """Reads the community's form: a root with a meta.json.

    Args:
      root: the folder.
      name: the dataset's key.
      only: the benchmark's only category, whatever the file calls it; None: it has several.

    Raises:
      UserError: the file cannot be read, or has no images to test on.
    """
    listing = Listing()
    splits = read_splits(lambda split: read_meta_json(root, name=name, split=split))
    for split, found in splits.items():
        listing.issues += found.issues
        place = {category: number for number, category in enumerate(found.categories)}
        # An entry may name another category than the list that it stands in.
        for sample in sorted(found, key=lambda sample: place[sample.category]):
            if Path(str(sample.image)).is_file():
                category = only or sample.category
                listing.add(split, [dataclasses.replace(sample, category=category)])
            else:
                listing.issues.append(Issue("image_missing", sample.file_name))
    return listing


def name_in(root: Path, path: Path) -> str:
    """The name of a file relative to the benchmark's root, the same on every system."""
    return path.relative_to(root).as_posix()
