"""`synthetic_aux` and `synthetic_target`: a procedural benchmark without downloads.

Images are drawn on access, from seeds made of the names of dataset and category and the index, so they are the
same on every machine and in every worker process. The datasets share no category and no function that draws a
defect. The first half of each category is normal; in the second half the kinds of defect take turns.
"""

from zsad_jax.data.dataset import Sample, describe, position_of
from zsad_jax.data.issues import Issue
from zsad_jax.data.synthetic import auxiliary, canvas, target
from zsad_jax.data.synthetic.scene import STRUCTURAL, Category, Scene, draw

__all__ = ["CATEGORIES", "STRUCTURAL", "Category", "Scene", "Synthetic", "draw"]

IMAGES_PER_CATEGORY = 32
VERSION = 1  # raise it whenever an image changes
CATEGORIES: dict[str, tuple[Category, ...]] = {
    "synthetic_aux": auxiliary.CATEGORIES,
    "synthetic_target": target.CATEGORIES,
}


class Synthetic:
    """A synthetic dataset: 8 categories, 256 images of 256 x 256 px, half of them anomalous."""

    contiguous = True
    issues: tuple[Issue, ...] = ()
    notes: tuple[Issue, ...] = ()

    def __init__(self, name: str):
        self.name = name
        self.categories = tuple(category.name for category in CATEGORIES[name])
        self.prompt_names = tuple(category.prompt_name for category in CATEGORIES[name])

    __repr__ = describe

    def __len__(self) -> int:
        return len(self.categories) * IMAGES_PER_CATEGORY

    def counts(self) -> dict[str, tuple[int, int]]:
        """Returns the numbers of (normal, anomalous) images per category."""
        normal = IMAGES_PER_CATEGORY // 2
        return dict.fromkeys(self.categories, (normal, IMAGES_PER_CATEGORY - normal))

    def fingerprint(self) -> str:
        """Returns the version of the images; two versions never mix in a working directory."""
        return f"{self.name} {VERSION}"

    def __getitem__(self, index: int) -> Sample:
        number, within = divmod(position_of(index, self), IMAGES_PER_CATEGORY)
        category = CATEGORIES[self.name][number]
        anomaly = within - IMAGES_PER_CATEGORY // 2
        kinds = tuple(category.defects)
        defect = kinds[anomaly % len(kinds)] if anomaly >= 0 else None
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
