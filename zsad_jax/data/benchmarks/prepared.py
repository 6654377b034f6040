"""Reading what the builders have written."""

import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from google.protobuf import json_format

from zsad_jax.data.benchmarks.base import Benchmark, prepared_at
from zsad_jax.data.benchmarks.counts import Counts
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.data.protocols import Naming, prompt_name
from zsad_jax.utils import files
from zsad_jax.utils.errors import NoSplitError, UserError

TEXTS = ("category", "defect", "prompt_name", "file_name", "subject")


class Recorded(NamedTuple):
    """What preparation found, as it is written beside the records.

    Attributes:
      counts: of all splits.
      issues: what was amiss, in all splits.
      notes: what is worth knowing, in all splits.
    """

    counts: Counts
    issues: tuple[Issue, ...]
    notes: tuple[Issue, ...]


class PreparedDataset:
    """The samples of a prepared benchmark, undecoded; can be sent to other processes.

    Attributes:
      name: the benchmark's key.
      categories: those that the split has, in the order of the tables.
      prompt_names: of each category.
      issues: what preparation found amiss, in all splits.
      notes: what it found worth knowing, in all splits.
      grouped: True; records are written category by category.
    """

    grouped = True

    def __init__(
        self,
        builder_class: type[Benchmark],
        data_dir: files.PathLike,
        split: str,
        *,
        naming: Naming = "published",
    ):
        self._builder_class, self._data_dir, self._split = builder_class, os.fspath(data_dir), split
        self._source: Any = None
        builder, metadata = open_builder(builder_class, data_dir)
        if split not in builder.info.splits:
            raise NoSplitError(
                f"{builder_class.TITLE} has no split {split!r}; it has"
                f" {' and '.join(builder.info.splits)}."
            )
        self._length = builder.info.splits[split].num_examples
        self.name = builder_class.name
        self.issues, self.notes = metadata.issues, metadata.notes
        found = list(metadata.counts[split])
        known = builder_class.categories()
        self.categories = tuple(sorted(found, key=[*known, *found].index))
        self.prompt_names = tuple(
            prompt_name(category, dataset=self.name, naming=naming) for category in self.categories
        )

    def __len__(self) -> int:
        return self._length

    def fingerprint(self) -> str:
        """A digest of what tensorflow-datasets recorded about the prepared files."""
        builder = self._builder_class(data_dir=self._data_dir)
        recorded = pathlib.Path(builder.data_dir, "dataset_info.json")
        stamps = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(recorded.parent.glob("*array_record*"))
        ]
        text = repr((recorded.read_bytes(), stamps, self._split))
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, index: int) -> Sample:
        position = int(index) + len(self) if index < 0 else int(index)
        if not 0 <= position < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no index {index}.")
        record = self._read(position)
        values = {name: record[name] for name in ("image", "mask")}
        values |= {name: _as_text(record[name]) for name in TEXTS}
        values |= {name: int(record[name]) for name in ("label", "slice")}
        values["has_mask"] = bool(record["has_mask"])
        if not (values["label"] and values["has_mask"]):
            values["mask"] = None  # the stored one is all zeros
        return Sample(**values)

    def _read(self, position: int) -> dict[str, Any]:
        try:
            return self._open()[position]
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                _describe_damage(self._builder_class, self._data_dir, reason)
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def _open(self) -> Any:
        if self._source is None:
            skip = tfds.decode.SkipDecoding()
            self._source = self._builder_class(data_dir=self._data_dir).as_data_source(
                self._split, decoders={"image": skip, "mask": skip}
            )
        return self._source


def is_prepared(builder_class: type[Benchmark], data_dir: files.PathLike) -> bool:
    """Whether a benchmark has been written completely."""
    return prepared_at(pathlib.Path(data_dir, builder_class.name, str(builder_class.VERSION)))


def open_builder(
    builder_class: type[Benchmark], data_dir: files.PathLike
) -> tuple[Benchmark, Recorded]:
    """The builder of a prepared benchmark, and what preparation recorded.

    Raises:
      UserError: what is recorded is damaged.
    """
    try:
        builder = builder_class(data_dir=data_dir)
        metadata = builder.info.metadata
        # A file of records that is gone is told before it is read.
        for split in builder.info.splits.values():
            for path in split.filepaths:
                path.stat()
        return builder, Recorded(
            counts={
                split: {category: (n, a) for category, (n, a) in categories.items()}
                for split, categories in metadata["counts"].items()
            },
            issues=_read_issues(metadata["faults"]),
            notes=_read_issues(metadata["notes"]),
        )
    except (KeyError, TypeError, ValueError, OSError, json_format.ParseError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(_describe_damage(builder_class, data_dir, reason)) from error


def _read_issues(rows: Any) -> tuple[Issue, ...]:
    return tuple(Issue(kind, file, detail) for kind, file, detail in rows)


def _describe_damage(builder_class: type[Benchmark], data_dir: files.PathLike, reason: str) -> str:
    place = pathlib.Path(data_dir, builder_class.name, str(builder_class.VERSION))
    return (
        f"{builder_class.TITLE} in {place} is damaged ({reason}): delete it, and prepare it again."
    )


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
