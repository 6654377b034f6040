"""Benchmarks as tensorflow-datasets builders, without tensorflow.

Importing this module registers them: `tfds.data_source("mvtec_ad", split="test")` then works.
"""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zsad_jax.data.benchmarks import availability, sources
from zsad_jax.data.benchmarks.counts import Counts, count
from zsad_jax.data.benchmarks.facts import DATASETS, Facts
from zsad_jax.data.benchmarks.layouts import find_layout, list_meta_json
from zsad_jax.data.benchmarks.listing import Listing
from zsad_jax.data.benchmarks.records import Record, encode
from zsad_jax.data.benchmarks.shards import write_split
from zsad_jax.data.benchmarks.unused import find_unused
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.issues import Issue
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress
from zsad_jax.utils.threads import map_in_threads


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: the bucket has no such benchmarks, and each look leaves a temporary folder."""


class Benchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A benchmark as a tensorflow-datasets builder that needs no tensorflow.

    Records hold the files' own bytes. Normal images have an all-zero mask; so have anomalous ones without
    ground truth, with `has_mask=False`. A copy with a meta.json is read for every benchmark.
    """

    VERSION = tfds.core.Version(availability.VERSION)
    # tensorflow-datasets would look for checksum files in the folder of the code; there are none.
    code_path = None

    def __init__(self, *, data_dir: files.PathLike | None = None, **options: Any):
        options["file_format"] = options.get("file_format") or "array_record"
        folder = os.path.abspath(data_dir or availability.default_data_dir())
        super().__init__(data_dir=folder, **options)
        self.num_workers = 1
        self._root: pathlib.Path | None = None
        self._issues: list[Issue] = []
        self._notes: list[Issue] = []
        self._counted: Counts = {}

    @property
    def facts(self) -> Facts:
        """Facts about the benchmark."""
        return DATASETS[self.name]

    def download_and_prepare(
        self, *, source: files.PathLike | None = None, num_workers: int = 1, **options: Any
    ) -> None:
        """Finds (or downloads) the official files, checks them and writes the records.

        Args:
          source: the archive, its extracted folder, or a parent of either; None: what was downloaded
            before, or is downloaded now.
          num_workers: threads that decode and check.
          options: those of tensorflow-datasets.

        Raises:
          UserError: the files are not there or not the published ones, or cannot be written.
        """
        if availability.is_prepared(self.name, self._data_dir_root):
            return
        title = self.facts.title
        if self.data_path.exists():
            raise UserError(
                f"{self.data_path} is an incomplete copy of {title}. Delete it and prepare it again."
            )
        folder = self.data_path.parent
        # Two preparations at once would write the same files.
        with files.alone(folder):
            downloaded = pathlib.Path(self._data_dir_root) / "downloads"
            with sources.open_root(self.name, source, folder, downloaded) as root:
                self._root, self.num_workers = root, num_workers
                try:
                    super().download_and_prepare(**options)
                    # After the directory has its final name, so that a kill leaves nothing without a mark.
                    pathlib.Path(self.data_dir, files.MARK).unlink()
                except (OSError, RuntimeError) as error:
                    if not files.is_disk_full(error):
                        raise
                    raise UserError(
                        f"The disk ran out of space while writing {title} to {folder}. Free some space, or give"
                        " a folder on a larger disk as --data_dir."
                    ) from error

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return _Info(
            builder=self,
            description=f"{self.facts.title}. {self.facts.about.strip()}",
            homepage=self.facts.homepage,
            license=self.facts.license,
            features=tfds.features.FeaturesDict(
                {
                    # Encoded bytes are stored as they are, gray ones, too: the shapes describe decoded
                    # images.
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "mask": tfds.features.Image(shape=(None, None, 1)),
                    "has_mask": np.bool_,
                    "label": tfds.features.ClassLabel(names=["normal", "anomalous"]),
                    "category": text(),
                    "defect": text(),
                    "prompt_name": text(),
                    "file_name": text(),
                    "subject": text(),
                    "slice": np.int32,
                }
            ),
            metadata=tfds.core.MetadataDict(),
            # Evaluation relies on the order of the records, category by category.
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Logs nothing: the sizes that tensorflow-datasets would print are unknown to it."""

    def _log_download_done(self) -> None:
        """Logs nothing: the command prints the place of the dataset."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self._root is None:
            raise RuntimeError("The files are found by download_and_prepare.")
        listing = self._list_files(self._root)
        if not any(listing.samples.values()):
            raise UserError(
                f"{self._root} has no images of {self.facts.title}. Expected files such as {self.facts.tree}."
                " Give another folder or archive as --source."
            )
        for split, samples in listing.samples.items():
            if not Samples(self.name, samples).contiguous:
                raise RuntimeError(f"{self.name}, {split}: a category is not in one piece.")
        self._issues, self._notes = list(listing.issues), []
        splits = listing.samples
        self._counted = {split: count(samples) for split, samples in splits.items()}
        return {split: self._generate_examples(split, splits[split]) for split in splits}

    def _list_files(self, root: pathlib.Path) -> Listing:
        """Lists the files of the official layout, else those of a meta.json."""
        layout = find_layout(self.name)
        if not layout.accepts(root):
            return list_meta_json(self.name, root)
        listing = layout.list_files(root)
        listing.issues += find_unused(listing, (*self.facts.excluded, *layout.excluded(root)))
        return listing

    def _generate_splits(
        self, dl_manager: Any, download_config: Any
    ) -> Sequence[tfds.core.SplitInfo]:
        """Writes the splits; tensorflow-datasets cannot without tensorflow above 1 GB."""
        del download_config  # number of files and shuffling
        files.make_removable(self.data_dir)  # the directory of what is not finished
        return [
            write_split(examples, self.info.features, self._get_filename_template(split_name=name))
            for name, examples in self._split_generators(dl_manager).items()
        ]

    def _generate_examples(self, split: str, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        records: Iterable[Record] = map_in_threads(
            lambda sample: encode(sample, self.name), samples, num_workers=self.num_workers
        )
        label = f"Writing {self.facts.title}, {split}"
        for record in progress(records, total=len(samples), label=label):
            self._issues += record.issues
            self._notes += record.notes
            yield record.fields

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        # Stored with the records, in the metadata.json of tensorflow-datasets.
        self.info.metadata["counts"] = self._counted
        self.info.metadata["faults"] = [list(issue) for issue in self._issues]
        self.info.metadata["notes"] = [list(note) for note in self._notes]


def make_builder(name: str) -> type[Benchmark]:
    """Makes and registers the builder of a benchmark from its facts."""
    title = "".join(part.capitalize() for part in name.split("_"))
    described = {"name": name, "__doc__": DATASETS[name].about, "__module__": __name__}
    return type(title, (Benchmark,), described)


BUILDERS = {name: make_builder(name) for name in availability.names()}
globals().update({builder.__name__: builder for builder in BUILDERS.values()})  # for pickle
