"""`synthetic_aux` and `synthetic_target`: a procedural benchmark without downloads.

Images are drawn on first access, from seeds made of the names of dataset and category and the index, so they
are the same on every machine and in every worker process. The datasets share no category and no function that
draws a defect. In the test split, the first half of each category is normal; in the second half the kinds of
defect take turns. The train split has further normal images.
"""

from typing import Any

from zsad_jax.data.dataset import Sample, describe, position_of
from zsad_jax.data.issues import Issue
from zsad_jax.data.synthetic import auxiliary, canvas, target
from zsad_jax.data.synthetic.scene import STRUCTURAL, Category, Scene, draw
from zsad_jax.utils.errors import NoSplitError, suggest

__all__ = ["CATEGORIES", "STRUCTURAL", "Category", "Scene", "Synthetic", "draw"]

NUM_NORMAL = 16  # images of each category, in each split
IMAGES_PER_CATEGORY = {"train": NUM_NORMAL, "test": 2 * NUM_NORMAL}
VERSION = 1  # raise it whenever an image changes
CATEGORIES: dict[str, tuple[Category, ...]] = {
    "synthetic_aux": auxiliary.CATEGORIES,
    "synthetic_target": target.CATEGORIES,
}


class Synthetic:
    """A synthetic dataset: 8 categories of 256 x 256 px; half of the 256 test images are anomalous."""

    contiguous = True
    issues: tuple[Issue, ...] = ()
    notes: tuple[Issue, ...] = ()

    def __init__(self, name: str, split: str = "test"):
        if split not in IMAGES_PER_CATEGORY:
            known = suggest(split, IMAGES_PER_CATEGORY)
            raise NoSplitError(f"{name} has no split {split!r}. {known}")
        self.name, self._split = name, split
        # Drawing an image takes four times as long as decoding it.
        self._drawn: dict[int, Sample] = {}
        self.categories = tuple(category.name for category in CATEGORIES[name])
        self.prompt_names = tuple(category.prompt_name for category in CATEGORIES[name])

    __repr__ = describe

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_drawn": {}}  # 30 MB, in each worker process

    def __len__(self) -> int:
        return len(self.categories) * IMAGES_PER_CATEGORY[self._split]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Returns the numbers of (normal, anomalous) images per category."""
        anomalous = IMAGES_PER_CATEGORY[self._split] - NUM_NORMAL
        return dict.fromkeys(self.categories, (NUM_NORMAL, anomalous))

    def fingerprint(self) -> str:
        """Returns the version of the images; two versions never mix in a working directory."""
        return f"{self.name} {VERSION}" + " train" * (self._split == "train")

    def __getitem__(self, index: int) -> Sample:
        position = position_of(index, self)
        if position not in self._drawn:
            self._drawn[position] = self._draw(position)
        return self._drawn[position]

    def _draw(self, position: int) -> Sample:
        number, within = divmod(position, IMAGES_PER_CATEGORY[self._split])
        category = CATEGORIES[self.name][number]
        anomaly = within - NUM_NORMAL
        kinds = tuple(category.defects)
        defect = kinds[anomaly % len(kinds)] if anomaly >= 0 else None
        if self._split == "train":
            within += IMAGES_PER_CATEGORY["test"]
        image, mask = draw(self.name, category, within, defect=defect)
        return Sample(
            image=canvas.encode_png(image),
            mask=None if defect is None else canvas.encode_png(mask.astype("uint8") * 255),
            has_mask=True,
            label=int(defect is not None),
            category=category.name,
            defect=defect or "good",
            prompt_name=category.prompt_name,
            file_name=f"{category.name}/{defect or 'good'}/{within:03d}.png",
        )
