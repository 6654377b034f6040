"""Several datasets, or several splits of one, joined to one."""

import hashlib
from collections.abc import Sequence

import numpy as np

from zsad_jax.data.dataset import Dataset, Sample, position_of
from zsad_jax.data.issues import Issue


class Joined:
    """The samples of several datasets, one dataset after the other.

    Attributes:
      name: of the whole.
      categories: of all datasets; categories of the same name are one.
      prompt_names: of each category, from the first dataset that has it.
      issues: of all datasets.
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
        # Splits of one benchmark have the same issues.
        found = (issue for dataset in datasets for issue in getattr(dataset, "issues", ()))
        self.issues: tuple[Issue, ...] = tuple(dict.fromkeys(found))

    @property
    def grouped(self) -> bool:
        """Returns whether the images of each category are consecutive."""
        apart = sum(len(dataset.categories) for dataset in self._datasets) == len(self.categories)
        return apart and all(dataset.grouped for dataset in self._datasets)

    def fingerprint(self) -> str:
        """Returns a text that changes with any of the datasets."""
        parts = repr([(one.name, one.fingerprint()) for one in self._datasets])
        return hashlib.sha256(parts.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        position = position_of(index, self)
        number = int(np.searchsorted(self._ends, position, side="right"))
        dataset = self._datasets[number]
        return dataset[int(position - (self._ends[number] - len(dataset)))]
