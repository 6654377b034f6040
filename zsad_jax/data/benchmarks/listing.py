"""Listing the files of a benchmark: finding images, pairing masks, cutting, choosing normal images."""

import dataclasses
import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from zsad_jax.data.benchmarks.records import image_to_png, mask_to_png
from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Lazy, Sample, as_mask
from zsad_jax.data.issues import Issue
from zsad_jax.data.preprocess import decode_mask, open_image
from zsad_jax.data.walk import find_folder, list_folders, list_images

Path = pathlib.Path
Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels; the last two are outside
T = TypeVar("T")

# Papers test on a quarter of the normal images of some sets, drawn with this seed by scikit-learn from files
# in the order of the disk. Which were drawn cannot be known; we draw from our own sorted order.
TEST_SHARE = 0.25
SEED = 42


@dataclasses.dataclass
class Listing:
    """The files of a benchmark, before any image is read.

    Attributes:
      root: the folder that names of files are relative to.
      samples: per split, in the order in which they are written, category by category. `prompt_name` may be
        omitted: the protocol knows it.
      known: further files of the benchmark: those that parts are cut from, or that are excluded on purpose.
      issues: what does not belong together.
    """

    root: Path
    samples: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)
    known: set[str] = dataclasses.field(default_factory=set)
    issues: list[Issue] = dataclasses.field(default_factory=list)

    def name(self, path: Path) -> str:
        """Returns the name of a file relative to the root, the same on every system."""
        return path.relative_to(self.root).as_posix()

    def sample(self, path: Path, **fields: Any) -> Sample:
        """Returns the sample of an image below the root."""
        return Sample(image=str(path), file_name=self.name(path), **fields)

    def report(self, kind: str, path: Path, detail: str = "") -> None:
        """Adds an issue of a file."""
        self.issues.append(Issue(kind, self.name(path), detail))

    def add(self, split: str, samples: Iterable[Sample]) -> None:
        """Appends samples to a split; none make no split, since an empty one cannot be written."""
        found = list(samples)
        if found:
            self.samples.setdefault(split, []).extend(found)

    def add_drawn(self, normal: Sequence[Sample], anomalous: Sequence[Sample]) -> None:
        """Adds a benchmark that is tested on a quarter of its normal images; the others are to train on."""
        tested, left = split_normals(normal)
        self.add("train", left)
        self.add("test", [*tested, *anomalous])

    def unmasked(self, images: Path, *, label: int, **fields: Any) -> list[Sample]:
        """Returns the images of a folder without ground truth: normal ones, or all of a set without masks.

        Normal images count in pixel metrics, anomalous ones without masks do not.
        """
        fields = {"has_mask": not label, **fields}
        return [self.sample(path, label=label, **fields) for path in list_images(images)]

    def masked(self, images: Path, masks: Path, **fields: Any) -> list[Sample]:
        """Returns the anomalous images of a folder with the masks of another, paired by stem, not by position.

        The masks of `000.png` are `000.*`, `000_mask.*`, `000_mask1.*` and all in a folder `000`, joined.
        """
        return self.pair(list_images(images), masks_by_stem(masks), **fields)

    def pair(
        self,
        images: Iterable[Path],
        masks: Mapping[str, Sequence[Path]],
        *,
        image_suffix: str = "",
        **fields: Any,
    ) -> list[Sample]:
        """Returns anomalous samples of images and their masks, by stem; reports those without a partner.

        `image_suffix` is what the stem of an image may have after the part that its masks are known by.
        """
        unused = dict(masks)
        samples = []
        for path in images:
            found = [str(mask) for mask in unused.pop(path.stem.removesuffix(image_suffix), ())]
            if not found:
                self.report("mask_missing", path)
            mask = as_mask(found)
            samples.append(self.sample(path, mask=mask, has_mask=bool(found), label=1, **fields))
        for left in unused.values():
            for path in left:
                self.report("mask_unused", path)
        return samples

    def cut(
        self, sample: Sample, boxes: Callable[[tuple[int, int]], Iterable[Box]]
    ) -> list[Sample]:
        """Cuts an image into parts; a part is anomalous where its ground truth is not empty.

        The image and its masks are decoded, and their issues reported. An image that cannot be used has no
        parts, nor has one that lacks its ground truth (`has_mask` False), about which nothing is known.

        Args:
          sample: of files; its masks are joined.
          boxes: from the image's (width, height), in pixels, to the parts.

        Returns:
          The parts, named `<stem>_0.png`, `<stem>_1.png`, …
        """
        found = examine(sample)
        masks = sample.masks
        self.known |= {str(path) for path in (sample.image, *masks)}
        self.issues += found.issues
        kinds = {issue.kind for issue in found.issues}
        # A part can be wholly defective, so a full mask is no reason to drop the image.
        if kinds - {"mask_full"} or found.image is None or not sample.has_mask:
            return []
        parts = []
        for index, box in enumerate(boxes(found.image.size)):
            left, upper, right, lower = box
            anomalous = found.mask is not None and bool(found.mask[upper:lower, left:right].any())
            cropped = [Crop(Path(str(mask)), box, is_mask=True) for mask in masks if anomalous]
            part = dataclasses.replace(
                sample,
                image=Crop(Path(str(sample.image)), box),
                mask=as_mask(cropped),
                label=int(anomalous),
                defect=sample.defect if anomalous else "good",
                file_name=f"{Path(sample.file_name).with_suffix('').as_posix()}_{index}.png",
            )
            parts.append(part)
        return parts


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


def find_inner_folder(parent: Path, *names: str) -> Path | None:
    """Finds a subfolder like `find_folder`, or the folder of the same name that it contains.

    Kaggle's copies nest folders in folders of the same name.
    """
    found = find_folder(parent, *names)
    return found and (find_inner_folder(found, found.name) or found)


def masks_by_stem(masks: Path, mask_suffix: str = "_mask") -> dict[str, list[Path]]:
    """Returns the masks in a folder by the stem of the image that they belong to."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(masks):
        # MVTec's layout numbers the masks of one image: 000_mask1, 000_mask2.
        match = re.fullmatch(rf"(.+){re.escape(mask_suffix)}\d*", path.stem)
        found[match[1] if match and mask_suffix else path.stem].append(path)
    for folder in list_folders(masks):
        found[folder.name] += list_images(folder)
    return {stem: paths for stem, paths in found.items() if paths}


def sort_by_number(paths: Iterable[Path]) -> list[Path]:
    """Sorts files by name, numbers in it by their value: 2 before 10."""
    return sorted(
        paths, key=lambda path: (re.sub(r"\d+", lambda n: n[0].zfill(12), path.name), path)
    )


def split_normals(samples: Sequence[T]) -> tuple[list[T], list[T]]:
    """Draws the share of the normal images that papers test on; (chosen, left), each in the given order.

    The number is rounded up, as in scikit-learn, so that it is the published one.
    """
    count = math.ceil(len(samples) * TEST_SHARE)
    chosen = set(np.random.default_rng(SEED).permutation(len(samples))[:count].tolist())
    return (
        [one for index, one in enumerate(samples) if index in chosen],
        [one for index, one in enumerate(samples) if index not in chosen],
    )
