"""Datasets: sequences of undecoded samples in one schema, whatever their source."""

import abc
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from zsad_jax.data.issues import Issue, merge_issues
from zsad_jax.utils.errors import UserError, plural


class Lazy(abc.ABC):
    """Bytes of an image file that are made on request: a crop, or a slice of a volume."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """Returns the encoded bytes, the same at every call; safe to call from several threads."""


Encoded = str | bytes | Lazy  # the path or the bytes of an image file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """An undecoded image of a dataset; the fields are the feature schema of every dataset.

    Attributes:
      image: path or encoded bytes.
      mask: path or encoded bytes of the ground truth, or several that are joined with OR; None = none.
      has_mask: whether pixel metrics use this image: normal images count with an all-zero mask, anomalous
        images without ground truth do not count.
      label: 0 normal, 1 anomalous.
      category: in the dataset's spelling ("metal_nut").
      defect: kind of defect ("good" for normal images, "" if unknown).
      prompt_name: name of the category in prompts ("metal nut").
      file_name: path relative to the dataset's root, for results.
      subject, slice: patient or volume, and position in it; "" and -1 elsewhere.
    """

    image: Encoded
    mask: Encoded | tuple[Encoded, ...] | None = None
    has_mask: bool = False
    label: int = 0
    category: str = ""
    defect: str = ""
    prompt_name: str = "object"
    file_name: str = ""
    subject: str = ""
    slice: int = -1

    @property
    def masks(self) -> tuple[Encoded, ...]:
        """The parts of the ground truth; () for none."""
        if self.mask is None:
            return ()
        return self.mask if isinstance(self.mask, tuple) else (self.mask,)


class Dataset(Protocol):
    """A random-access sequence of samples (a data source in grain).

    Attributes:
      categories: in the order of the tables.
      prompt_names: of each category.
      contiguous: whether the images of each category are consecutive.
      issues: found while the dataset was put together (missing masks); the loader reports unreadable files.
      notes: remarks that do not affect results.
    """

    name: str
    categories: tuple[str, ...]
    prompt_names: tuple[str, ...]
    issues: tuple[Issue, ...]
    notes: tuple[Issue, ...]

    @property
    def contiguous(self) -> bool: ...

    def fingerprint(self) -> str:
        """Returns a text that changes with any image, mask or label; decodes nothing."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def describe(dataset: Dataset) -> str:
    """Returns a line on a dataset: its class, its name and its size."""
    sizes = f"images={len(dataset)}, categories={len(dataset.categories)}"
    return f"{type(dataset).__name__}({dataset.name!r}, {sizes})"


class ImageBatch(NamedTuple):
    """A decoded batch of constant shape; rows with `valid=False` (padding or unreadable) are ignored.

    Attributes:
      images: resized, in 8 bits; `Preprocess.normalize` makes the tower's input of them on the device. None
        if features are stored.
      masks: resized ground truth, all False if there is none.
      index: position in the dataset; -1 for padding.
      aspect: width / height of the image before it was resized.
      file_names: of each row; "" for padding.
      issues: of each row; its image could not be read, or its mask could not be used.
      notes: of each row; facts on the image (16-bit values were scaled, its mask is empty).
    """

    images: UInt8[np.ndarray, "b S S 3"] | None
    masks: Bool[np.ndarray, "b S S"]
    has_mask: Bool[np.ndarray, " b"]
    labels: Int[np.ndarray, " b"]
    category: Int[np.ndarray, " b"]
    index: Int[np.ndarray, " b"]  # type: ignore[assignment]  # tuples have a method of that name
    valid: Bool[np.ndarray, " b"]
    aspect: Float[np.ndarray, " b"]
    file_names: tuple[str, ...] = ()
    issues: tuple[tuple[Issue, ...], ...] = ()
    notes: tuple[tuple[Issue, ...], ...] = ()


def join_batches(parts: Sequence[ImageBatch]) -> ImageBatch:
    """Returns the rows of all parts, without images."""
    _, *columns = zip(*parts, strict=True)
    joined = (
        np.concatenate(x) if isinstance(x[0], np.ndarray) else tuple(itertools.chain(*x))
        for x in columns
    )
    return ImageBatch._make((None, *joined))


class Samples(Sequence[Sample]):
    """A dataset in memory, as a list of samples; those with issues are part of it."""

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        categories: Sequence[str] | None = None,
        *,
        issues: Sequence[Issue] = (),
        notes: Sequence[Issue] = (),
    ):
        """Categories have the given order, or that of first appearance.

        Raises:
          UserError: a sample has another category, or a label other than 0 and 1.
        """
        self.name = name
        self.issues = tuple(issues)
        self.notes = tuple(notes)
        self._samples = tuple(samples)
        prompt_names = {sample.category: sample.prompt_name for sample in self._samples}
        self.categories = tuple(categories) if categories is not None else tuple(prompt_names)
        self.prompt_names = tuple(
            prompt_names.get(category, category) for category in self.categories
        )
        for number, one in enumerate(self._samples):
            if one.category not in self.categories or one.label not in (0, 1):
                raise UserError(
                    f"Sample {number} of {name} ({one.file_name}) has the category {one.category!r} and"
                    f" the label {one.label!r}. Expected 0 or 1, and one of {', '.join(self.categories)}."
                )

    def __len__(self) -> int:
        return len(self._samples)

    __repr__ = describe

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        return self._samples[index]

    @property
    def contiguous(self) -> bool:
        runs = [category for category, _ in itertools.groupby(s.category for s in self._samples)]
        return len(runs) == len(set(runs))

    def fingerprint(self) -> str:
        """Returns a digest of the fields of all samples; files count with size and time of change."""
        digest = hashlib.sha256()
        # Stamps stand for the content of files, whose digest would take minutes for a benchmark.
        for sample in self._samples:
            stamps = [_stamp(encoded) for encoded in (sample.image, *sample.masks)]
            fields = dataclasses.replace(sample, image="", mask=None)
            digest.update(repr((fields, stamps)).encode())
        return digest.hexdigest()


class Joined:
    """The samples of several datasets, one dataset after the other.

    Categories of the same name are merged; the first dataset that has one gives its name in prompts.
    """

    def __init__(self, name: str, datasets: Sequence[Dataset]):
        self.name = name
        self._datasets = tuple(datasets)
        self._ends = np.cumsum([len(dataset) for dataset in datasets])
        named: dict[str, str] = {}
        for dataset in datasets:
            for category, prompt_name in zip(dataset.categories, dataset.prompt_names, strict=True):
                named.setdefault(category, prompt_name)
        self.categories, self.prompt_names = tuple(named), tuple(named.values())
        self.issues = merge_issues(dataset.issues for dataset in datasets)
        self.notes = merge_issues(dataset.notes for dataset in datasets)

    __repr__ = describe

    @property
    def contiguous(self) -> bool:
        # A category of two datasets is in two pieces, one in each.
        apart = sum(len(dataset.categories) for dataset in self._datasets) == len(self.categories)
        return apart and all(dataset.contiguous for dataset in self._datasets)

    def fingerprint(self) -> str:
        parts = repr([(one.name, one.fingerprint()) for one in self._datasets])
        return hashlib.sha256(parts.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        position = position_of(index, self)
        number = int(np.searchsorted(self._ends, position, side="right"))
        dataset = self._datasets[number]
        # From the end of this dataset: `_ends` counts the samples up to and including it.
        return dataset[position - int(self._ends[number]) + len(dataset)]


def as_mask(parts: Sequence[Encoded]) -> Encoded | tuple[Encoded, ...] | None:
    """Returns the parts of a ground truth in the form of `Sample.mask`."""
    return tuple(parts) if len(parts) > 1 else next(iter(parts), None)


def position_of(index: int, dataset: Dataset) -> int:
    """Returns an index, which may count from the end, as a position from the start.

    Raises:
      IndexError: there is no such sample.
    """
    position = int(index) + len(dataset) if index < 0 else int(index)
    if not 0 <= position < len(dataset):
        raise IndexError(
            f"Index {index} is out of range. {dataset.name} has {plural(len(dataset), 'image')}."
        )
    return position


def read_sample(dataset: Dataset, index: int) -> Sample | Issue:
    """Returns a sample, or an issue if its record cannot be read, whatever a damaged file raises."""
    try:
        return dataset[index]
    # One damaged record must not end a run over thousands of others.
    except Exception as error:
        detail = str(error).partition("\n")[0] or type(error).__name__
        return Issue("record_unreadable", f"image {index} of {dataset.name}", detail)


def read_field(dataset: Dataset, name: str) -> np.ndarray:
    """Returns a field of each sample, such as "category"; None if its record cannot be read."""
    # Without the samples themselves, which can hold encoded images.
    samples = (read_sample(dataset, position) for position in range(len(dataset)))
    return np.array([getattr(sample, name, None) for sample in samples], object)


def _stamp(encoded: Encoded) -> Any:
    encoded = encoded.read() if isinstance(encoded, Lazy) else encoded
    if isinstance(encoded, bytes):
        return hashlib.sha256(encoded).hexdigest()
    # A missing file has a stamp as well, so that the fingerprint changes when it appears.
    if not os.path.exists(encoded):
        return None
    status = os.stat(encoded)
    # Without the folder, which differs between machines.
    return os.path.basename(encoded), status.st_size, status.st_mtime_ns
