"""Datasets of prepared benchmarks, read from array_record files."""

import hashlib
import os
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from google.protobuf import json_format

from zsad_jax.data.benchmarks.availability import find_place
from zsad_jax.data.benchmarks.builders import BUILDERS
from zsad_jax.data.benchmarks.counts import Counts
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.dataset import Sample, describe, position_of
from zsad_jax.data.issues import Issue
from zsad_jax.data.protocols import Naming, prompt_name
from zsad_jax.utils import files
from zsad_jax.utils.errors import NoSplitError, UserError, suggest

TEXTS = ("category", "defect", "prompt_name", "file_name", "subject")


class Recorded(NamedTuple):
    """The description that preparation stored with the records.

    Attributes:
      lengths: numbers of images, by split.
      counts: of all splits.
      issues: of all splits.
      notes: of all splits.
    """

    lengths: dict[str, int]
    counts: Counts
    issues: tuple[Issue, ...]
    notes: tuple[Issue, ...]


class PreparedDataset:
    """The samples of a prepared benchmark, undecoded; can be sent to other processes.

    Issues and notes are those that preparation found in all splits.
    """

    contiguous = True  # records are written category by category

    def __init__(
        self,
        name: str,
        data_dir: files.PathLike,
        split: str = "test",
        *,
        naming: Naming = "published",
    ):
        self.name, self._data_dir, self._split = name, os.fspath(data_dir), split
        self._source: Any = None
        recorded = read_recorded(name, data_dir)
        facts = DATASETS[name]
        if split not in recorded.lengths:
            known = suggest(split, recorded.lengths)
            raise NoSplitError(f"{facts.title} has no split {split!r}. {known}")
        self._length = recorded.lengths[split]
        self.issues, self.notes = recorded.issues, recorded.notes
        found = list(recorded.counts[split])
        # In the order of the papers' tables; further categories of a copy come last.
        self.categories = tuple(sorted(found, key=[*facts.categories, *found].index))
        self.prompt_names = tuple(
            prompt_name(category, dataset=name, naming=naming) for category in self.categories
        )

    __repr__ = describe

    def __len__(self) -> int:
        return self._length

    def fingerprint(self) -> str:
        """Returns a digest of what tensorflow-datasets recorded about the prepared files."""
        place = find_place(self.name, self._data_dir)
        # Sizes and times of change stand for the content: a digest of gigabytes would take minutes.
        stamps = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(place.glob("*array_record*"))
        ]
        text = repr(((place / "dataset_info.json").read_bytes(), stamps, self._split))
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, index: int) -> Sample:
        record = self._read(position_of(index, self))
        values = {name: record[name] for name in ("image", "mask")}
        values |= {name: _as_text(record[name]) for name in TEXTS}
        values |= {name: int(record[name]) for name in ("label", "slice")}
        values["has_mask"] = bool(record["has_mask"])
        if not (values["label"] and values["has_mask"]):
            values["mask"] = None  # the stored one is all zeros
        return Sample(**values)

    def _read(self, position: int) -> dict[str, Any]:
        try:
            # Opened on first use in each process: open files cannot be pickled.
            if self._source is None:
                # The files' own bytes are returned: the loader decodes like for every other dataset.
                skip = tfds.decode.SkipDecoding()
                self._source = BUILDERS[self.name](data_dir=self._data_dir).as_data_source(
                    self._split, decoders={"image": skip, "mask": skip}
                )
            return self._source[position]
        # array_record raises RuntimeError or ValueError for damaged files.
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(self.name, self._data_dir, error) from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}


def read_recorded(name: str, data_dir: files.PathLike) -> Recorded:
    """Reads what preparation recorded of a benchmark, and checks that the files of records exist.

    Raises:
      UserError: what is recorded is damaged.
    """
    try:
        info = BUILDERS[name](data_dir=data_dir).info
        # A missing file would otherwise be noticed only when its first record is read.
        for split in info.splits.values():
            for path in split.filepaths:
                path.stat()
        counts = {
            split: {category: (normal, anomalous) for category, (normal, anomalous) in one.items()}
            for split, one in info.metadata["counts"].items()
        }
        issues, notes = (
            tuple(Issue(*row) for row in info.metadata[key]) for key in ("faults", "notes")
        )
        lengths = {split: one.num_examples for split, one in info.splits.items()}
        return Recorded(lengths, counts, issues, notes)
    except (KeyError, TypeError, ValueError, OSError, json_format.ParseError) as error:
        raise _damaged(name, data_dir, error) from error


def _damaged(name: str, data_dir: files.PathLike, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(
        f"{DATASETS[name].title} in {find_place(name, data_dir)} is damaged ({reason}). Delete it and"
        " prepare it again."
    )


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
