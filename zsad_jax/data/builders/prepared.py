"""Reading what the builders have written."""

import hashlib
import os
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from zsad_jax import files
from zsad_jax.data.base import Fault, Sample
from zsad_jax.data.builders.base import Benchmark
from zsad_jax.data.protocol import Naming, prompt_name
from zsad_jax.errors import UserError

TEXTS = ("category", "defect", "prompt_name", "file_name", "subject")


class PreparedDataset:
    """The samples of a prepared benchmark, undecoded; can be sent to other processes.

    Attributes:
      name: the benchmark's key.
      categories: those that the split has, in the order of the tables.
      prompt_names: of each category.
      faults: what preparation found amiss, in all splits.
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
        builder = builder_class(data_dir=self._data_dir)
        metadata = builder.info.metadata
        if split not in builder.info.splits:
            raise UserError(
                f"{builder_class.TITLE} has no split {split!r}; it has"
                f" {' and '.join(builder.info.splits)}."
            )
        self._length = builder.info.splits[split].num_examples
        self.name = builder_class.name
        self.faults = tuple(Fault(*fault) for fault in metadata["faults"])
        self.notes = tuple(Fault(*note) for note in metadata["notes"])
        found = list(metadata["counts"][split])
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
        record = self._open()[position]
        values = {name: record[name] for name in ("image", "mask")}
        values |= {name: _as_text(record[name]) for name in TEXTS}
        values |= {name: int(record[name]) for name in ("label", "slice")}
        values["has_mask"] = bool(record["has_mask"])
        if not (values["label"] and values["has_mask"]):
            values["mask"] = None  # the stored one is all zeros
        return Sample(**values)

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
    version = pathlib.Path(data_dir, builder_class.name, str(builder_class.VERSION))
    return (version / "dataset_info.json").is_file()


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
