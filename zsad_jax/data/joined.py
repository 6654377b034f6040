"""Several datasets, or several splits of one, as one."""

import hashlib
from collections.abc import Sequence

import numpy as np

from zsad_jax.data.dataset import Dataset, Sample
from zsad_jax.data.issues import Issue


class Joined:
    """The samples of several datasets, one dataset after the other.

    Attributes:
      name: of the whole.
      categories: of all; one that several have is the same.
      prompt_names: of each category, from the first dataset that has it.
      issues: of all.
    """

    def __init__(self, name: str, datasets: Sequence[Dataset]):
        self.name = name
        self._datasets = tuple(datasets)
        self._ends = np.cumsum([len(dataset) for dataset in datasets])
        named: dict[str, str] = {}
        for dataset in datasets:
            for category, called in zip(dataset.categories, dataset.prompt_names, strict=True):
                named.setdefault(category, called)
        self.categories, self.prompt_names = tuple(named), tuple(named.values())
        # Splits of one benchmark tell the same issues.
        found = (issue for dataset in datasets for issue in getattr(dataset, "issues", ()))
        self.issues: tuple[Issue, ...] = tuple(dict.fromkeys(found))

    @property
    def grouped(self) -> bool:
        """Whether the images of each category follow one another."""
        apart = sum(len(dataset.categories) for dataset in self._datasets) == len(self.categories)
        return apart and all(dataset.grouped for dataset in self._datasets)

    def fingerprint(self) -> str:
        """Changes when one of the datasets does."""
        parts = repr([(one.name, one.fingerprint()) for one in self._datasets])
        return hashlib.sha256(parts.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no index {index}.")
        number = int(np.searchsorted(self._ends, position, side="right"))
        dataset = self._datasets[number]
        return dataset[int(position - (self._ends[number] - len(dataset)))]
