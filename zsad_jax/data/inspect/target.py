"""What a person names on the command line, a benchmark or a folder, with all of its splits."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.counts import Counts, Published, count
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.folder import list_splits
from zsad_jax.data.issues import Issue
from zsad_jax.data.meta_json import META_JSON, read_splits
from zsad_jax.data.open import SYNTHETIC, is_available, open_dataset
from zsad_jax.data.protocols import DATASETS
from zsad_jax.data.synthetic import Synthetic
from zsad_jax.utils.errors import NotPreparedError, UserError, suggest
from zsad_jax.utils.files import PathLike


class Target(NamedTuple):
    """A dataset that is there.

    Attributes:
      key: the benchmark's key, or the folder as it was given.
      title: for people.
      place: where it lies.
      splits: of which it consists.
      recorded: the counts that preparation has written beside the records; None where there are no records.
      published: the counts that are published of its splits, {} of a folder.
      only: the benchmark's only category, whatever a copy calls it; "" where it has several.
    """

    key: str
    title: str
    place: str
    splits: dict[str, Dataset]
    recorded: Counts | None = None
    published: Published = {}  # noqa: RUF012 - never changed
    only: str = ""

    @property
    def issues(self) -> tuple[Issue, ...]:
        """What was amiss when it was prepared or put together, in all splits."""
        return self._remarks("issues")

    @property
    def notes(self) -> tuple[Issue, ...]:
        """What preparation has noted."""
        return self._remarks("notes")

    def _remarks(self, kind: str) -> tuple[Issue, ...]:
        # Splits of one benchmark tell the same.
        found = (issue for one in self.splits.values() for issue in getattr(one, kind, ()))
        return tuple(dict.fromkeys(found))

    def counts_of(self, split: str) -> dict[str, tuple[int, int]]:
        """Numbers of (normal, anomalous) images per category, without decoding any."""
        if self.recorded is not None:
            return self.recorded[split]
        dataset = self.splits[split]
        if isinstance(dataset, Synthetic):
            return dataset.counts()
        return self.as_published(count(dataset[i] for i in range(len(dataset))))

    def as_published(self, counts: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Counts under the benchmark's own name of its category, where it has only one."""
        if not self.only:
            return dict(counts)
        return {self.only: (sum(n for n, _ in counts.values()), sum(a for _, a in counts.values()))}


def open_target(
    name: str, data_dir: PathLike, *, normal_folders: tuple[str, ...] | None = None
) -> Target:
    """Opens a benchmark by its key, or a folder by its path; what is a key is taken as one.

    Args:
      name: a key ("mvtec_ad"), the name of a folder with a meta.json below `data_dir`, or a path.
      data_dir: where prepared benchmarks lie.
      normal_folders: names of folders with normal images, for a path; see `read_folder`.

    Raises:
      UserError: there is no such thing, or it is not prepared; the message says what to do.
    """
    if name in DATASETS:
        return _open_known(name, data_dir)
    if os.path.basename(name) == name and os.path.isfile(os.path.join(data_dir, name, META_JSON)):
        return Target(name, name, os.path.join(data_dir, name), _open_splits(name, data_dir))
    if os.path.isdir(name):
        return _open_folder(name, data_dir, normal_folders)
    if os.path.exists(name):
        raise UserError(f"{name} is a file; give a dataset's key or a folder.")
    raise UserError(f"There is no dataset and no folder {name!r}: {suggest(name, DATASETS)}")


def _open_known(name: str, data_dir: PathLike) -> Target:
    title = DATASETS[name].title
    if name in SYNTHETIC:
        return Target(name, title, "what the library draws", {"test": open_dataset(name, data_dir)})
    benchmark = benchmarks.find_benchmark(name)
    if benchmarks.is_prepared(name, data_dir):
        return _open_prepared(benchmark, data_dir)
    if not is_available(name, data_dir):
        raise NotPreparedError(f"{benchmarks.how_to_prepare(name, data_dir)}.")
    splits = _open_splits(name, data_dir)
    published = {split: benchmark.COUNTS[split] for split in splits if split in benchmark.COUNTS}
    categories = benchmark.categories()
    only = categories[0] if len(categories) == 1 else ""
    place = f"a folder with a {META_JSON} below {data_dir}"
    return Target(name, title, place, splits, published=published, only=only)


def _open_prepared(benchmark: type[benchmarks.Benchmark], data_dir: PathLike) -> Target:
    builder, recorded = benchmarks.open_builder(benchmark, data_dir)
    counts, place = recorded.counts, str(builder.data_path)
    splits = {split: open_dataset(benchmark.name, data_dir, split=split) for split in counts}
    return Target(benchmark.name, benchmark.TITLE, place, splits, counts, benchmark.COUNTS)


def _open_folder(path: str, data_dir: PathLike, normal_folders: tuple[str, ...] | None) -> Target:
    options: dict[str, Any] = {"normal_folders": normal_folders} if normal_folders else {}
    title = os.path.basename(os.path.abspath(path))
    described = {"folder": path, **options}
    if os.path.isfile(os.path.join(path, META_JSON)):
        return Target(path, title, os.path.abspath(path), _open_splits(described, data_dir))
    names = list_splits(path) or ("test",)
    splits = {split: open_dataset(described, data_dir, split=split) for split in names}
    return Target(path, title, os.path.abspath(path), splits)


def _open_splits(spec: Any, data_dir: PathLike) -> dict[str, Dataset]:
    return dict(read_splits(lambda split: open_dataset(spec, data_dir, split=split)))
