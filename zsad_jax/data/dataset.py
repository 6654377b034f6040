"""What a dataset is: a sequence of undecoded samples in one schema, whatever it came from."""

import abc
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int, UInt8

from zsad_jax.data.issues import Issue


class Lazy(abc.ABC):
    """An image file's bytes that are made when they are asked for: of a crop, or of a volume's slice."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """The encoded bytes, the same at every call; safe to call from several threads."""


Encoded = str | bytes | Lazy  # a file's path, or the encoded bytes of an image file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a dataset, nothing decoded. The fields are the feature schema of every dataset.

    Attributes:
      image: path or encoded bytes.
      mask: path or encoded bytes of the ground truth, or several to be joined with OR; None where there
        is none.
      has_mask: whether pixel metrics may use this image: normal images have an all-zero mask and count,
        anomalous images without ground truth do not.
      label: 0 normal, 1 anomalous.
      category: the dataset's own spelling ("metal_nut").
      defect: kind of defect ("good" for normal images, "" when unknown).
      prompt_name: how the category is called in prompts ("metal nut").
      file_name: path relative to the dataset's root, for people and for results.
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
        """The parts of the ground truth; () where there is none."""
        if self.mask is None:
            return ()
        return self.mask if isinstance(self.mask, tuple) else (self.mask,)


class Dataset(Protocol):
    """A random-access sequence of samples (what grain calls a data source).

    Attributes:
      categories: in the order of the tables.
      prompt_names: of each category.
      grouped: whether the images of each category follow one another.
    """

    name: str
    categories: tuple[str, ...]
    prompt_names: tuple[str, ...]

    @property
    def grouped(self) -> bool: ...

    def fingerprint(self) -> str:
        """Changes when an image, a mask or a label does; told without decoding anything."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class ImageBatch(NamedTuple):
    """A decoded batch of constant shape; rows with `valid=False` are padding or unreadable, and ignored.

    Attributes:
      images: resized, still 8-bit; `Preprocess.normalize` makes the tower's input of it, on the device.
      masks: resized ground truth, all False where there is none.
      index: position in the dataset; -1 for padding.
      file_names: of each row; "" for padding.
      issues: images that could not be read, and masks that could not be used.
      notes: what is worth knowing of the others (16-bit values scaled, an empty mask on an anomalous image).
    """

    images: UInt8[np.ndarray, "b S S 3"]
    masks: Bool[np.ndarray, "b S S"]
    has_mask: Bool[np.ndarray, " b"]
    labels: Int[np.ndarray, " b"]
    category: Int[np.ndarray, " b"]
    index: Int[np.ndarray, " b"]  # type: ignore[assignment]  # tuples have a method of that name
    valid: Bool[np.ndarray, " b"]
    file_names: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()
    notes: tuple[Issue, ...] = ()


class Samples(Sequence[Sample]):
    """A dataset held as a list of samples.

    Attributes:
      issues: what was amiss when the dataset was put together (masks that are missing, say). The samples
        concerned are in the dataset all the same; files that cannot be read are the loader's to report.
      notes: what is worth knowing but harms nothing.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        categories: Sequence[str] | None = None,
        *,
        issues: Sequence[Issue] = (),
        notes: Sequence[Issue] = (),
    ):
        """Categories come in the given order, else in order of first appearance."""
        self.name = name
        self.issues = tuple(issues)
        self.notes = tuple(notes)
        self._samples = tuple(samples)
        prompt_names = {sample.category: sample.prompt_name for sample in self._samples}
        self.categories = tuple(categories) if categories is not None else tuple(prompt_names)
        self.prompt_names = tuple(
            prompt_names.get(category, category) for category in self.categories
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]

    @property
    def grouped(self) -> bool:
        """Whether the images of each category follow one another."""
        runs = [category for category, _ in itertools.groupby(s.category for s in self._samples)]
        return len(runs) == len(set(runs))

    def fingerprint(self) -> str:
        """A digest of every sample's fields, of files by their size and time of change."""
        digest = hashlib.sha256()
        for sample in self._samples:
            stamps = [_stamp(encoded) for encoded in (sample.image, *sample.masks)]
            fields = dataclasses.replace(sample, image="", mask=None)
            digest.update(repr((fields, stamps)).encode())
        return digest.hexdigest()


def as_mask(parts: Sequence[Encoded]) -> Encoded | tuple[Encoded, ...] | None:
    """Returns the parts of a ground truth in the form of `Sample.mask`."""
    return tuple(parts) if len(parts) > 1 else next(iter(parts), None)


def read_sample(dataset: Dataset, index: int) -> Sample | Issue:
    """Returns a sample, or the issue of a record that cannot be read, whatever a damaged file leads to."""
    try:
        return dataset[index]
    except Exception as error:
        detail = str(error).partition("\n")[0] or type(error).__name__
        return Issue("record_unreadable", f"image {index} of {dataset.name}", detail)


def _stamp(encoded: Encoded) -> Any:
    """What changes when a file or its bytes do."""
    encoded = encoded.read() if isinstance(encoded, Lazy) else encoded
    if isinstance(encoded, bytes):
        return hashlib.sha256(encoded).hexdigest()
    if not os.path.exists(encoded):
        return None
    status = os.stat(encoded)
    return os.fspath(encoded), status.st_size, status.st_mtime_ns
