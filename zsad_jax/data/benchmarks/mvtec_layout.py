"""MVTec AD's layout, which many industrial sets have taken over."""

import pathlib
from collections.abc import Mapping
from typing import ClassVar

from zsad_jax.data.benchmarks.base import Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, list_folders, list_pairs, list_unmasked


class MvtecLayout(Benchmark, skip_registration=True):
    """`<category>/<split>/<defect>/000.png` with `<category>/ground_truth/<defect>/000_mask.png`.

    Attributes:
      NORMAL: the folder of normal images.
      SPLITS: the splits and their folders.
      GROUND_TRUTH: the folder of the masks, below the category's.
      MARKS: folders of a category by which the benchmark is known; one of them is enough.
    """

    NORMAL: ClassVar[str] = "good"
    SPLITS: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}
    GROUND_TRUTH: ClassVar[str] = "ground_truth"
    MARKS: ClassVar[tuple[str, ...]] = ("test/good",)

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds one of the categories."""
        return any(
            (folder / category / mark).is_dir()
            for category in cls.categories()
            for mark in cls.MARKS
        )

    @classmethod
    def left_out(cls, root: pathlib.Path) -> tuple[str, ...]:
        """Masks of normal images are empty, where there are any."""
        return (*super().left_out(root), f"*/{cls.GROUND_TRUTH}/{cls.NORMAL}")

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images with their masks: category by category, then by kind of defect and file name."""
        listing = Listing()
        for category in cls.categories():
            for split, below in cls.SPLITS.items():
                for folder in list_folders(root / category / below):
                    if folder != root / category / cls.GROUND_TRUTH:
                        cls._list_kind(root, folder, category, split, listing)
        return listing

    @classmethod
    def _list_kind(
        cls, root: pathlib.Path, folder: pathlib.Path, category: str, split: str, listing: Listing
    ) -> None:
        """Adds the images of one kind of defect, or the normal ones."""
        if folder.name == cls.NORMAL:
            found = list_unmasked(root, folder, label=0, category=category, defect="good")
        else:
            masks = root / category / cls.GROUND_TRUTH / folder.name
            fields = {"category": category, "defect": folder.name}
            found = list_pairs(root, folder, masks, listing.issues, **fields)
        listing.add(split, found)
