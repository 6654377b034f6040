"""What all benchmarks share: features, splits, checks, counts and writing. A benchmark adds its layout."""

import abc
import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from zsad_jax.data.benchmarks import sources
from zsad_jax.data.benchmarks.counts import ALL, Counts, Published, count
from zsad_jax.data.benchmarks.layouts import Listing, list_meta_json
from zsad_jax.data.benchmarks.records import Record, encode
from zsad_jax.data.benchmarks.shards import write_split
from zsad_jax.data.benchmarks.sources import Archive
from zsad_jax.data.benchmarks.unused import find_unused
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.issues import Issue
from zsad_jax.data.protocols import DATASETS
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress
from zsad_jax.utils.threads import map_in_threads

__all__ = ["ALL", "Archive", "Benchmark", "default_data_dir"]


def prepared_at(path: files.PathLike) -> bool:
    """Whether a folder of records is complete: its description is the last file that is written."""
    return pathlib.Path(path, "dataset_info.json").is_file()


def default_data_dir() -> pathlib.Path:
    """Where prepared datasets lie unless the user says otherwise."""
    return files.home() / "data"


class Benchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A benchmark as a tensorflow-datasets builder that needs no tensorflow.

    Records hold the files' own bytes. A normal image has an all-zero mask, and so has an anomalous one
    without ground truth, which `has_mask` tells apart.

    A subclass is layout knowledge only. It sets the constants below (`name` is the dataset's key) and says how
    to find its files. A folder in the community's form, with a meta.json, is read for every benchmark.

    Attributes:
      HOMEPAGE: where people get it.
      LICENCE: of the data.
      ARCHIVES: the official files.
      TREE: paths below the root that show the layout, for people.
      COUNTS: published numbers of (normal, anomalous) images: split -> category. `ALL` in place of a
        category is the whole split, and a category of None is one of which the name alone is published;
        {} where nothing is.
      CATEGORIES: in the order of the tables; () = those of COUNTS["test"], else as they are found.
      LEFT_OUT: glob patterns, relative to the root and in any case, of files and folders with images that are
        no part of the benchmark on purpose; all others that no sample is made of are told.
      TERMS: why the archives cannot be fetched by a program, if they cannot.
      UNPACK: the command that unpacks archives that Python cannot (7z, rar, split, with a password).
    """

    VERSION = tfds.core.Version("1.0.0")
    # Where tensorflow-datasets would look for checksum files beside the code; there are none.
    code_path = None
    TITLE: ClassVar[str]
    HOMEPAGE: ClassVar[str]
    LICENCE: ClassVar[str]
    ARCHIVES: ClassVar[tuple[Archive, ...]]
    TREE: ClassVar[str]
    COUNTS: ClassVar[Published] = {}
    CATEGORIES: ClassVar[tuple[str, ...]] = ()
    LEFT_OUT: ClassVar[tuple[str, ...]] = ()
    TERMS: ClassVar[str] = "its terms must be accepted there"
    UNPACK: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if cls.name in DATASETS:  # else it is what several benchmarks share
            cls.TITLE = DATASETS[cls.name].title

    def __init__(self, *, data_dir: files.PathLike | None = None, **options: Any):
        options["file_format"] = options.get("file_format") or "array_record"
        super().__init__(data_dir=os.path.abspath(data_dir or default_data_dir()), **options)
        self.num_workers = 1
        self._root: pathlib.Path | None = None
        self._issues: list[Issue] = []
        self._notes: list[Issue] = []
        self._counted: Counts = {}

    @classmethod
    @abc.abstractmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder is the root of the extracted archives."""

    @classmethod
    def is_given(cls, folder: pathlib.Path) -> bool:
        """Whether a folder that a person names outright is the root, even where nothing says so but that.

        For layouts that several benchmarks share (`images` beside `masks`). True wherever `is_root` is.
        """
        return cls.is_root(folder)

    @classmethod
    @abc.abstractmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All samples, and what does not belong together; images are not read.

        Raises:
          UserError: the files cannot be understood; the message shows what was expected.
        """

    @classmethod
    def categories(cls) -> tuple[str, ...]:
        """The categories in the order of the tables."""
        return cls.CATEGORIES or tuple(name for name in cls.COUNTS.get("test", {}) if name != ALL)

    @classmethod
    def left_out(cls, root: pathlib.Path) -> tuple[str, ...]:
        """`LEFT_OUT`, and what else is left out of the files below this root."""
        del root
        return cls.LEFT_OUT

    @classmethod
    def layout(cls) -> sources.Layout:
        """What is needed to find the benchmark on a disk."""
        return sources.Layout(
            cls.TITLE,
            tuple(filter(None, (cls.name, DATASETS[cls.name].folder))),
            cls.ARCHIVES,
            cls.is_root,
            cls.is_given,
            cls.TREE,
            cls.HOMEPAGE,
            cls.TERMS,
            cls.UNPACK,
        )

    @classmethod
    def how_to_prepare(cls, data_dir: files.PathLike) -> str:
        """What to do to get the benchmark, with the exact command."""
        command = f"python -m zsad_jax.data prepare {cls.name}"
        if pathlib.Path(data_dir) != default_data_dir():
            command += f" --data_dir {shlex.quote(os.fspath(data_dir))}"
        what = " and ".join(f"{archive.file_name} ({archive.about})" for archive in cls.ARCHIVES)
        if all(archive.url for archive in cls.ARCHIVES):
            return (
                f"{cls.TITLE} is not prepared in {data_dir}; this fetches {what}, {cls.LICENCE}, and"
                f" prepares it: {command}"
            )
        return (
            f"{cls.TITLE} is not prepared in {data_dir}; get {what} from {cls.HOMEPAGE}"
            f" ({cls.LICENCE}; {cls.TERMS}), {f'unpack with {cls.UNPACK}, ' if cls.UNPACK else ''}then:"
            f" {command} --source PATH (of the archive or its extracted folder)"
        )

    def download_and_prepare(
        self, *, source: files.PathLike | None = None, num_workers: int = 1, **options: Any
    ) -> None:
        """Finds (or fetches) the official files, checks them and writes the records.

        Args:
          source: the archive, its extracted folder, or a parent of either; None: what was fetched
            before, or is fetched now.
          num_workers: threads that decode and check.
          options: those of tensorflow-datasets.

        Raises:
          UserError: the files are not there or not the published ones, or cannot be written.
        """
        if prepared_at(self.data_path):
            return
        if self.data_path.exists():
            raise UserError(
                f"{self.data_path} is an incomplete copy of {self.TITLE}: delete it, and prepare it again."
            )
        folder = self.data_path.parent
        with files.alone(folder):
            for unfinished in folder.glob("incomplete.*"):
                if files.is_removable(unfinished):  # of a preparation that was killed
                    files.remove(unfinished)
            downloaded = pathlib.Path(self._data_dir_root) / "downloads"
            with sources.open_root(self.layout(), source, folder, downloaded) as root:
                self._root, self.num_workers = root, num_workers
                try:
                    super().download_and_prepare(**options)
                except (OSError, RuntimeError) as error:
                    if not files.is_disk_full(error):
                        raise
                    raise UserError(
                        f"The disk of {folder} became full while {self.TITLE} was written: make room,"
                        " or give a folder on a larger disk as --data_dir."
                    ) from error

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.TITLE}. {self.__doc__}",
            homepage=self.HOMEPAGE,
            license=self.LICENCE,
            features=tfds.features.FeaturesDict(
                {
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
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Says nothing: the sizes that tensorflow-datasets would print are unknown to it."""

    def _log_download_done(self) -> None:
        """Says nothing: the command tells where the dataset lies."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self._root is None:
            raise RuntimeError("download_and_prepare is what finds the files.")
        listing = self._list(self._root)
        if not any(listing.samples.values()):
            raise UserError(f"No images of {self.TITLE} in {self._root}: it holds no {self.TREE}.")
        for split, samples in listing.samples.items():
            if not Samples(self.name, samples).grouped:
                raise RuntimeError(f"{self.name}, {split}: a category is not in one piece.")
        self._issues, self._notes = list(listing.issues), []
        self._counted = {split: count(samples) for split, samples in listing.samples.items()}
        return {
            split: self._generate_examples(split, samples)
            for split, samples in listing.samples.items()
        }

    @classmethod
    def _list(cls, root: pathlib.Path) -> Listing:
        """The files of the official layout, else those that a meta.json lists."""
        if cls.is_given(root):
            listing = cls.list_files(root)
            listing.issues += find_unused(root, listing, cls.left_out(root))
            return listing
        only = cls.categories()[0] if len(cls.categories()) == 1 else None
        return list_meta_json(root, cls.name, only)

    def _generate_splits(
        self, dl_manager: Any, download_config: Any
    ) -> Sequence[tfds.core.SplitInfo]:
        """Writes the splits in tensorflow-datasets' place, which cannot without tensorflow above 1 GB."""
        del download_config  # says how to shuffle and how many files to write
        files.make_removable(self.data_dir)  # the directory of what is not finished
        return [
            write_split(examples, self.info.features, self._get_filename_template(split_name=name))
            for name, examples in self._split_generators(dl_manager).items()
        ]

    def _generate_examples(self, split: str, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        records = map_in_threads(
            lambda sample: encode(sample, self.name), samples, num_workers=self.num_workers
        )
        label = f"Writing {self.TITLE}, {split}"
        shown: Iterable[Record] = progress(records, total=len(samples), label=label)
        for record in shown:
            self._issues += record.issues
            self._notes += record.notes
            yield record.fields

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        # Written beside the records, together with the rest of the dataset's description.
        self.info.metadata["counts"] = self._counted
        self.info.metadata["faults"] = [list(issue) for issue in self._issues]
        self.info.metadata["notes"] = [list(note) for note in self._notes]
        pathlib.Path(self.data_dir, files.MARK).unlink()  # it is finished, and not removed any more
