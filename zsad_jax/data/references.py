"""Normal reference images of each category, drawn from the train split of a dataset."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from zsad_jax.data.dataset import Dataset, Sample, read_sample
from zsad_jax.data.loader import load_batches
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import NoSplitError, UserError, plural
from zsad_jax.utils.records import fingerprint


class References(NamedTuple):
    """Normal images of each category of a dataset, the same number of each.

    Attributes:
      source: the dataset that has them, a train split.
      positions: of the images of each category in the source.
      file_names: of these images, by category.
      seed: of the draw, and of random views of the images.
    """

    source: Dataset
    positions: tuple[tuple[int, ...], ...]
    file_names: dict[str, list[str]]
    seed: int

    @property
    def shots(self) -> int:
        """The number of images of each category."""
        return len(self.positions[0])

    @property
    def digest(self) -> str:
        """A text that changes with the images and their views."""
        return fingerprint(self.source.fingerprint(), self.positions, self.seed)

    def read(self, preprocess: Preprocess) -> Iterator[UInt8[np.ndarray, "k S S 3"]]:
        """Yields the resized images of each category.

        Raises:
          UserError: an image cannot be read.
        """
        indices = [position for of_category in self.positions for position in of_category]
        for batch in load_batches(
            self.source, preprocess, batch_size=self.shots, indices=indices, num_workers=0
        ):
            if batch.images is None or not batch.valid.all():
                issue = next(filter(None, batch.issues))[0]
                raise UserError(
                    f"A reference image cannot be read: {issue}. Repair the file, or choose another seed."
                )
            yield batch.images


def draw_references(
    source: Dataset, categories: Sequence[str], shots: int, seed: int
) -> References:
    """Draws normal images of each category; with the same seed, fewer are a part of more.

    Raises:
      NoSplitError: the source has fewer of a category.

    Example:
      >>> from zsad_jax.data import open_dataset
      >>> source = open_dataset("synthetic_target:train", "datasets")
      >>> draw_references(source, ["marble"], shots=2, seed=0).file_names
      {'marble': ['marble/good/034.png', 'marble/good/037.png']}
    """
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in categories}
    missing = shots * len(found)
    # In random order over all categories, so that few of the samples of a large dataset are read.
    for position in np.random.default_rng(seed).permutation(len(source)).tolist():
        if not missing:
            break
        category, file_name = _identify_normal(source, position) or (None, "")  # type: ignore[arg-type]
        if category in found and len(found[category]) < shots:
            found[category].append((position, file_name))
            missing -= 1
    few = min(found, key=lambda name: len(found[name]))
    if missing:
        raise NoSplitError(
            f"{source.name} has {plural(len(found[few]), 'normal image')} of the category {few} for training,"
            f" but {shots} of each are required as references. Use fewer, or another dataset."
        )
    drawn = {name: sorted(images) for name, images in found.items()}
    return References(
        source=source,
        positions=tuple(tuple(position for position, _ in images) for images in drawn.values()),
        file_names={name: [file for _, file in images] for name, images in drawn.items()},
        seed=seed,
    )


@functools.lru_cache(maxsize=4096)  # for draws with other seeds: a synthetic sample takes 50 ms
def _identify_normal(source: Dataset, position: int) -> tuple[str, str] | None:
    """Returns the category and the file name of a normal sample; None for any other."""
    sample = read_sample(source, position)
    if isinstance(sample, Sample) and not sample.label:
        return sample.category, sample.file_name
    return None
