"""Sets without masks that consist of two folders: one of normal images, one of anomalous ones."""

import pathlib
import re
from typing import ClassVar

from zsad_jax.data.benchmarks.base import Benchmark
from zsad_jax.data.benchmarks.layouts import (
    Listing,
    find_folder,
    list_images,
    list_unmasked,
    split_normals,
)
from zsad_jax.data.dataset import Sample


class TwoFolders(Benchmark, skip_registration=True):
    """The folder is the label: `<kind>/images`, `<kind>/image` or `<kind>` itself holds the images.

    Attributes:
      NORMAL, ANOMALOUS: names of the two kinds, in any case, in order of preference.
      STEM: what most names of anomalous images look like (a regular expression), where nothing else tells
        the benchmark from others.
      DEFECT: what the anomalous images show.
      DRAWN: whether a quarter of the normal images is in the test split and the others in the train split.
    """

    NORMAL: ClassVar[tuple[str, ...]]
    ANOMALOUS: ClassVar[tuple[str, ...]]
    STEM: ClassVar[str] = ".*"
    DEFECT: ClassVar[str]
    DRAWN: ClassVar[bool] = False

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds both kinds, in the spelling of this set."""
        anomalous = list_images(_find_images(folder, *cls.ANOMALOUS))
        fitting = [bool(re.fullmatch(cls.STEM, path.stem)) for path in anomalous]
        return sum(fitting) > len(fitting) / 2 and bool(cls._list_kind(folder, label=0))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images of the two kinds; what else lies there has no label."""
        listing = Listing()
        normal, anomalous = (cls._list_kind(root, label=label) for label in (0, 1))
        tested, left = split_normals(normal) if cls.DRAWN else (normal, [])
        listing.add("train", left)
        listing.add("test", tested + anomalous)
        return listing

    @classmethod
    def _list_kind(cls, root: pathlib.Path, *, label: int) -> list[Sample]:
        return list_unmasked(
            root,
            _find_images(root, *(cls.ANOMALOUS if label else cls.NORMAL)),
            label=label,
            category=cls.name,
            defect=cls.DEFECT if label else "good",
            has_mask=False,
        )


def _find_images(root: pathlib.Path, *names: str) -> pathlib.Path:
    """The folder of the images of one kind; one that is not there when there is none."""
    kind = find_folder(root, *names) or root / names[0]
    return find_folder(kind, "images", "image") or kind
