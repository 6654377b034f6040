"""What all benchmarks share: features, splits, checks, counts and writing. A benchmark adds its layout."""

import abc
import collections
import dataclasses
import errno
import io
import os
import pathlib
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from zsad_jax import files
from zsad_jax.data.base import Fault, Sample
from zsad_jax.data.builders import sources
from zsad_jax.data.builders.layouts import Listing
from zsad_jax.data.builders.sources import Archive
from zsad_jax.data.class_names import prompt_name
from zsad_jax.data.preprocess import UnreadableImage, decode_image, decode_mask
from zsad_jax.errors import UserError
from zsad_jax.progress import progress

__all__ = ["Archive", "Benchmark", "default_data_dir"]

Counts = dict[str, dict[str, tuple[int, int]]]  # split -> category -> (normal, anomalous)
Record = tuple[dict[str, Any], list[Fault]]
T, R = TypeVar("T"), TypeVar("R")


def default_data_dir() -> pathlib.Path:
    """Where prepared datasets lie unless the user says otherwise."""
    return files.home() / "data"


class Benchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A benchmark as a tensorflow-datasets builder that needs no tensorflow.

    Records hold the files' own bytes. A normal image has an all-zero mask, and so has an anomalous one
    without ground truth, which `has_mask` tells apart.

    A subclass sets the constants below and says how to find its files. COUNTS are the published numbers of
    (normal, anomalous) images, and name the categories in the order of the tables.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Where tensorflow-datasets would look for checksum files beside the code; there are none.
    code_path = None
    TITLE: ClassVar[str]
    HOMEPAGE: ClassVar[str]
    LICENCE: ClassVar[str]
    ARCHIVES: ClassVar[tuple[Archive, ...]]
    TREE: ClassVar[str]
    COUNTS: ClassVar[Counts]

    def __init__(self, *, data_dir: files.PathLike | None = None, **options: Any):
        options["file_format"] = options.get("file_format") or "array_record"
        super().__init__(data_dir=os.fspath(data_dir or default_data_dir()), **options)
        self.num_workers = 1
        self._root: pathlib.Path | None = None
        self._faults: list[Fault] = []
        self._counted: Counts = {}

    @classmethod
    @abc.abstractmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder is the root of the extracted archives."""

    @classmethod
    @abc.abstractmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All samples with paths, and what does not belong together; nothing is read."""

    @classmethod
    def categories(cls) -> tuple[str, ...]:
        """The categories in the order of the tables."""
        return tuple(cls.COUNTS["test"])

    @classmethod
    def layout(cls) -> sources.Layout:
        """What is needed to find the benchmark on a disk."""
        return sources.Layout(cls.TITLE, cls.ARCHIVES, cls.is_root, cls.TREE, cls.HOMEPAGE)

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
            f" ({cls.LICENCE}; its terms must be accepted there), then: {command} --source PATH"
            " (of the archive or its extracted folder)"
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
        if self.data_path.exists():
            return
        folder = self.data_path.parent
        with files.alone(folder):
            for unfinished in folder.glob("incomplete.*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            downloaded = pathlib.Path(self._data_dir_root) / "downloads"
            with sources.open_root(self.layout(), source, folder, downloaded) as root:
                self._root, self.num_workers = root, num_workers
                try:
                    super().download_and_prepare(**options)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
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
        listing = self.list_files(self._root)
        if not any(listing.samples.values()):
            raise UserError(f"No images of {self.TITLE} in {self._root}: it holds no {self.TREE}.")
        self._faults = list(listing.faults)
        self._counted = {split: count(samples) for split, samples in listing.samples.items()}
        return {
            split: self._generate_examples(split, samples)
            for split, samples in listing.samples.items()
        }

    def _generate_examples(
        self, split: str, samples: Sequence[Sample]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        records = map_in_threads(_encode, samples, num_workers=self.num_workers)
        label = f"Writing {self.TITLE}, {split}"
        shown: Iterable[Record] = progress(records, total=len(samples), label=label)
        for index, (record, faults) in enumerate(shown):
            self._faults += faults
            yield index, record

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        # Written beside the records, together with the rest of the dataset's description.
        self.info.metadata["counts"] = self._counted
        self.info.metadata["faults"] = [list(fault) for fault in self._faults]


def count(samples: Iterable[Sample]) -> dict[str, tuple[int, int]]:
    """Numbers of (normal, anomalous) images per category."""
    labels = collections.defaultdict(list)
    for sample in samples:
        labels[sample.category].append(sample.label)
    return {category: (ones.count(0), ones.count(1)) for category, ones in labels.items()}


def compare_counts(found: Counts, published: Counts) -> list[str]:
    """Every difference between what was found and what is published, a sentence each."""
    differences = []
    for split in dict.fromkeys([*published, *found]):
        theirs, ours = published.get(split, {}), found.get(split, {})
        for category in dict.fromkeys([*theirs, *ours]):
            expected, has = theirs.get(category, (0, 0)), tuple(ours.get(category, (0, 0)))
            if has != expected:
                differences.append(
                    f"{split}/{category}: {has[0]} normal and {has[1]} anomalous images instead of"
                    f" {expected[0]} and {expected[1]}"
                )
    return differences


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], *, num_workers: int
) -> Iterator[R]:
    """Applies a function in threads, in order, a few items ahead and not more."""
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: collections.deque[Future[R]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _encode(sample: Sample) -> Record:
    """A sample as a record, and what is wrong with it."""
    faults: list[Fault] = []

    def report(reason: str) -> None:
        faults.append(Fault(sample.file_name, reason))

    image = _read(sample.image)
    size = None
    try:
        size = decode_image(image).image.size
    except UnreadableImage as error:
        report(error.reason)
    mask = _encode_mask(sample, size, report)
    record = dataclasses.asdict(sample) | {
        "image": image,
        "mask": mask,
        "prompt_name": prompt_name(sample.category)
        if sample.prompt_name == "object"
        else sample.prompt_name,
    }
    return record, faults


def _encode_mask(
    sample: Sample, size: tuple[int, int] | None, report: Callable[[str], None]
) -> bytes:
    """The mask's own bytes; zeros where there is none; several joined to one."""
    if sample.mask is None:
        return _to_png(np.zeros((size or (1, 1))[::-1], np.bool_))
    parts = sample.mask if isinstance(sample.mask, tuple) else (sample.mask,)
    encoded = tuple(_read(part) for part in parts)
    try:
        mask = decode_mask(encoded)
    except UnreadableImage as error:
        report(f"its mask cannot be used: {error.reason}")
        return encoded[0]
    height, width = mask.shape
    if size is not None and size != (width, height):
        report(f"its mask is {width}x{height}, the image {size[0]}x{size[1]}")
    if sample.label and not mask.any():
        report("it is anomalous and its mask is empty")
    return encoded[0] if len(encoded) == 1 else _to_png(mask)


def _read(encoded: str | bytes) -> bytes:
    return encoded if isinstance(encoded, bytes) else pathlib.Path(encoded).read_bytes()


def _to_png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, "PNG")
    return buffer.getvalue()
