"""A benchmark or a folder that the user names, with all of its splits."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.availability import find_place
from zsad_jax.data.benchmarks.counts import Counts, Pair, Published, count, total
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.issues import Issue, merge_issues
from zsad_jax.data.meta_json import META_JSON
from zsad_jax.data.open import check_available, open_dataset, open_splits
from zsad_jax.data.synthetic import CATEGORIES, Synthetic
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.files import PathLike


class OpenedDataset(NamedTuple):
    """A dataset that exists, with all of its splits.

    Attributes:
      key: the benchmark's key, or the folder as it was given.
      title: for people.
      place: where it is.
      splits: of which it consists.
      recorded: the counts that preparation stored with the records; None if there are no records.
      published: the published counts of its splits, {} of a folder.
      only: the benchmark's only category, whatever a copy calls it; "" where it has several.
    """

    key: str
    title: str
    place: str
    splits: Mapping[str, Dataset]
    recorded: Counts | None = None
    published: Published = {}  # noqa: RUF012 - never changed
    only: str = ""

    @property
    def issues(self) -> tuple[Issue, ...]:
        """Issues found when it was prepared or put together, in all splits."""
        return merge_issues(split.issues for split in self.splits.values())

    @property
    def notes(self) -> tuple[Issue, ...]:
        """Notes of the preparation."""
        return merge_issues(split.notes for split in self.splits.values())

    def count_all(self) -> Counts:
        """Returns the counts of every split, without decoding an image."""
        if self.recorded is not None:
            return self.recorded
        return {
            split: dataset.counts()
            if isinstance(dataset, Synthetic)
            else self.as_published(count(dataset[i] for i in range(len(dataset))))
            for split, dataset in self.splits.items()
        }

    def as_published(self, counts: Mapping[str, Pair]) -> dict[str, Pair]:
        """Returns counts under the benchmark's own name of its category, where it has only one."""
        return {self.only: total(counts) or (0, 0)} if self.only else dict(counts)


def open_all_splits(
    name: str, data_dir: PathLike, *, normal_folders: tuple[str, ...] | None = None
) -> OpenedDataset:
    """Opens a benchmark by its key, or a folder by its path; a key goes before a path.

    Args:
      name: a key ("mvtec_ad"), the name of a folder with a meta.json below `data_dir`, or a path.
      data_dir: the folder of prepared benchmarks.
      normal_folders: names of folders with normal images, for a path; see `read_folder`.

    Raises:
      UserError: there is no such dataset, or it is not prepared; the message says what to do.
    """
    if name in DATASETS:
        return _open_known(name, data_dir)
    if os.path.basename(name) == name and os.path.isfile(os.path.join(data_dir, name, META_JSON)):
        return OpenedDataset(name, name, os.path.join(data_dir, name), open_splits(name, data_dir))
    if os.path.isdir(name):
        options = {"normal_folders": normal_folders} if normal_folders else {}
        place = os.path.abspath(name)
        return OpenedDataset(
            name, os.path.basename(place), place, open_splits({"folder": name, **options}, data_dir)
        )
    if os.path.exists(name):
        raise UserError(f"{name} is a file. Give a dataset's key or a folder.")
    raise UserError(f"{name!r} is neither a known dataset nor a folder. {suggest(name, DATASETS)}")


def _open_known(name: str, data_dir: PathLike) -> OpenedDataset:
    facts = DATASETS[name]
    check_available(name, data_dir)
    if name in CATEGORIES:
        drawn = {"test": open_dataset(name, data_dir)}
        return OpenedDataset(name, facts.title, "drawn on access", drawn)
    if benchmarks.is_prepared(name, data_dir):
        from zsad_jax.data.benchmarks.prepared import read_recorded

        counts = read_recorded(name, data_dir).counts
        place = os.path.abspath(find_place(name, data_dir))
        # Preparation recorded the counts, so that no record is read to count them.
        prepared = {split: open_dataset(name, data_dir, split=split) for split in counts}
        return OpenedDataset(name, facts.title, place, prepared, counts, facts.counts)
    splits = open_splits(name, data_dir)
    published = {split: facts.counts[split] for split in splits if split in facts.counts}
    # Copies name the only category of a benchmark differently ("SDD" for ksdd).
    only = facts.categories[0] if len(facts.categories) == 1 else ""
    place = f"a folder with a {META_JSON} below {data_dir}"
    return OpenedDataset(name, facts.title, place, splits, published=published, only=only)
