"""Normal reference images of each category, drawn from the train split of a dataset."""

import functools
from collections.abc import Iterable, Iterator, Sequence
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
      images: of each category, the positions in the source by file name.
      seed: of the draw, and of random views of the images.
    """

    source: Dataset
    images: dict[str, dict[str, int]]
    seed: int

    @property
    def shots(self) -> int:
        """The number of images of each category."""
        return len(next(iter(self.images.values())))

    @property
    def digest(self) -> str:
        """A digest of the source, the positions of the images and the seed."""
        return fingerprint(self.source.fingerprint(), self.images, self.seed)

    def read(self, preprocess: Preprocess) -> Iterator[UInt8[np.ndarray, "k S S 3"]]:
        """Yields the resized images of each category.

        Raises:
          UserError: an image cannot be read.
        """
        indices = [at for drawn in self.images.values() for at in sorted(drawn.values())]
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
    source: Dataset, categories: Sequence[str], draws: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], References]:
    """Draws normal images of each category, for each of several (number of images, seed).

    A smaller draw is a subset of a larger one with the same seed.

    Raises:
      NoSplitError: the source has fewer of a category.
      UserError: a drawn image cannot be read.

    Example:
      >>> from zsad_jax.data import open_dataset
      >>> source = open_dataset("synthetic_target:train", "datasets")
      >>> draw_references(source, ["marble"], [(2, 0)])[2, 0].images
      {'marble': {'marble/good/037.png': 37, 'marble/good/034.png': 34}}
    """

    @functools.cache  # for all draws: a synthetic sample takes 50 ms
    def identify(position: int) -> tuple[str | None, str]:
        sample = read_sample(source, position)
        if isinstance(sample, Sample) and not sample.label:
            return sample.category, sample.file_name
        return None, ""

    def draw(shots: int, seed: int) -> References:
        images: dict[str, dict[str, int]] = {name: {} for name in categories}
        # In random order over all categories, so that few of the samples of a large dataset are read.
        for position in np.random.default_rng(seed).permutation(len(source)).tolist():
            category, file_name = identify(position)
            if category in images and len(images[category]) < shots:
                images[category][file_name] = position
                if all(len(drawn) == shots for drawn in images.values()):
                    return References(source, images, seed)
        few = min(images, key=lambda name: len(images[name]))
        raise NoSplitError(
            f"{source.name} has {plural(len(images[few]), 'normal image')} of the category {few} for training,"
            f" but {shots} of each are required as references. Use fewer, or another dataset."
        )

    drawn = {one: draw(*one) for one in draws}
    images = (of_category for one in drawn.values() for of_category in one.images.values())
    every = References(source, {"": functools.reduce(dict.__or__, images, {})}, 0)
    for _ in every.read(Preprocess(image_size=1)):  # now, and not after other long work
        pass
    return drawn
