"""`synthetic_aux` and `synthetic_target`: a procedural benchmark that needs no download.

Every image is drawn when it is asked for, from seeds made of the dataset's name, the category's name and the
index, so it is the same on every machine and any worker process can draw its own. The two sets share no
category and no function that draws a defect. In each category the first half of the images is normal, and in
the second half the kinds of defect take turns.
"""

from zsad_jax.data.dataset import Dataset, Sample, position_of
from zsad_jax.data.synthetic import (
    aux_defects,
    aux_objects,
    aux_textures,
    canvas,
    target_defects,
    target_objects,
    target_textures,
)
from zsad_jax.data.synthetic.scene import STRUCTURAL, Category, Painter, Scene, draw
from zsad_jax.utils.errors import UserError

__all__ = ["CATEGORIES", "STRUCTURAL", "Category", "Scene", "Synthetic", "draw", "load"]

IMAGES_PER_CATEGORY = 32
VERSION = 1  # to be raised whenever any picture changes

AUX_DEFECTS = aux_defects.DEFECTS
TARGET_DEFECTS = target_defects.DEFECTS


def _categories(painters: tuple[Painter, ...], defects) -> tuple[Category, ...]:
    """One category for each `paint_<name>` function, with the same set of defects."""
    return tuple(
        Category(name=painter.__name__.removeprefix("paint_"), paint=painter, defects=defects)
        for painter in painters
    )


CATEGORIES: dict[str, tuple[Category, ...]] = {
    "synthetic_aux": _categories(
        (
            aux_textures.paint_leather_grain,
            aux_textures.paint_concrete,
            aux_textures.paint_wood_grain,
            aux_textures.paint_knitted_fabric,
        ),
        aux_defects.SURFACE_DEFECTS,
    )
    + _categories(
        (
            aux_objects.paint_gear,
            aux_objects.paint_bottle_cap,
            aux_objects.paint_keypad,
            aux_objects.paint_ceramic_tile_set,
        ),
        AUX_DEFECTS,
    ),
    "synthetic_target": _categories(
        (
            target_textures.paint_brushed_steel,
            target_textures.paint_woven_basket,
            target_textures.paint_marble,
            target_textures.paint_corrugated_card,
        ),
        target_defects.SURFACE_DEFECTS,
    )
    + _categories(
        (
            target_objects.paint_perforated_plate,
            target_objects.paint_washer,
            target_objects.paint_pill_blister,
            target_objects.paint_circuit_pads,
        ),
        TARGET_DEFECTS,
    ),
}


class Synthetic:
    """One of the two sets: a random-access sequence of samples that are drawn on access."""

    grouped = True

    def __init__(self, name: str):
        self.name = name
        self.categories = tuple(category.name for category in CATEGORIES[name])
        self.prompt_names = tuple(category.prompt_name for category in CATEGORIES[name])

    def __len__(self) -> int:
        return len(self.categories) * IMAGES_PER_CATEGORY

    def counts(self) -> dict[str, tuple[int, int]]:
        """Numbers of (normal, anomalous) images per category."""
        normal = IMAGES_PER_CATEGORY // 2
        return dict.fromkeys(self.categories, (normal, IMAGES_PER_CATEGORY - normal))

    def fingerprint(self) -> str:
        """The version of the drawings; two versions never mix in a working directory."""
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


def load(name: str) -> Dataset:
    """The set called `synthetic_aux` or `synthetic_target`: 8 categories, 256 images, half anomalous.

    Args:
      name: which of the two.

    Returns:
      A dataset whose samples hold encoded PNG images of 256 x 256 px; it is cheap to make and to pickle.

    Raises:
      UserError: there is no such set.
    """
    if name not in CATEGORIES:
        raise UserError(
            f"There is no synthetic dataset {name!r}; choose one of {', '.join(CATEGORIES)}."
        )
    return Synthetic(name)
