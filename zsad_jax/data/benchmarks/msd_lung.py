"""MSD lung (Antonelli et al., Nature Communications 2022, task 6): CT of the chest with lung cancer."""

import dataclasses
import functools
import gzip
import math
import os
import pathlib
import threading
import zlib
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, name_in
from zsad_jax.data.benchmarks.records import image_to_png, mask_to_png
from zsad_jax.data.dataset import Lazy, Sample
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress

IMAGES, LABELS = "imagesTr", "labelsTr"
# The names of those that have labels; the others are in imagesTs.
VOLUMES = tuple(
    f"lung_{number:03}"
    for number in (
        *(1, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 20, 22, 23, 25, 26, 27, 28, 29, 31, 33, 34, 36, 37),
        *(38, 41, 42, 43, 44, 45, 46, 47, 48, 49, 51, 53, 54, 55, 57, 58, 59, 61, 62, 64, 65, 66),
        *(69, 70, 71, 73, 74, 75, 78, 79, 80, 81, 83, 84, 86, 92, 93, 95, 96),
    )
)
BLOCK = 1 << 20  # bytes that are read at once
# Threads that work side by side are in one volume, or at the end of one and the start of the next.
VOLUMES_HELD = 2


class MsdLung(Benchmark):
    """Slices of CT volumes, one category a volume, as in TPS; masks of cancer.

    Volumes are cut along their last axis. A slice is anomalous where its label has a 1, and is scaled from its
    own minimum and maximum to 8 bits, without any window. Axes are as stored: a picture's rows are the first
    axis, so that patients lie on their side.
    """

    name = "msd_lung"
    HOMEPAGE = "http://medicaldecathlon.com"
    LICENCE = "CC BY-SA 4.0"
    ARCHIVES = (
        Archive(
            "Task06_Lung.tar",
            about="9.2 GB",
            md5="8afd997733c7fc0432f71255ba4e52dc",
            size=9_163_696_640,
            url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task06_Lung.tar",
        ),
    )
    TREE = f"{IMAGES}/lung_053.nii.gz and {LABELS}/lung_053.nii.gz"
    LEFT_OUT = ("imagesTs",)  # without labels
    # How many slices there are of each is not published.
    COUNTS = {"test": dict.fromkeys(VOLUMES)}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds labelled volumes of lungs, not of another task."""
        return bool(_list_volumes(folder / IMAGES) and _list_volumes(folder / LABELS))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All slices of the labelled volumes; labels are read, and volumes checked, but not kept."""
        listing = Listing()
        _import_nibabel()
        volumes, labels = _list_volumes(root / IMAGES), _list_volumes(root / LABELS)
        listing.known |= {str(path) for path in (*volumes.values(), *labels.values())}
        reader = _Reader()
        for name, path in progress(
            volumes.items(), total=len(volumes), label="Checking volumes", unit="volume"
        ):
            label = labels.pop(name, None)
            if label is None:
                listing.issues.append(Issue("mask_missing", name_in(root, path)))
                continue
            try:
                listing.add("test", _list_slices(name, path, _read_label(label, path), reader))
            except _DamagedVolume as error:
                listing.issues.append(
                    Issue("image_unreadable", name_in(root, error.path), error.reason)
                )
        for path in labels.values():
            listing.issues.append(Issue("mask_unused", name_in(root, path)))
        return listing


@dataclasses.dataclass(frozen=True)
class _Slice(Lazy):
    """One slice of a volume, as an 8-bit PNG."""

    reader: "_Reader"
    path: pathlib.Path
    index: int

    def read(self) -> bytes:
        """Scales and encodes the slice."""
        return image_to_png(Image.fromarray(self.reader.read(self.path)[self.index]))


class _Reader:
    """Decodes volumes, and holds the last ones, for slices are asked for one by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = functools.lru_cache(maxsize=VOLUMES_HELD)(read_slices)

    def read(self, path: pathlib.Path) -> UInt8[np.ndarray, "D H W"]:
        """The slices of a volume; other threads wait meanwhile, and then find them here."""
        with self._lock:
            return self._read(path)


class _DamagedVolume(Exception):  # noqa: N818 - it says what the volume is
    def __init__(self, path: pathlib.Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason


def read_slices(path: pathlib.Path) -> UInt8[np.ndarray, "D H W"]:
    """Decodes a volume; each slice scaled from its own minimum and maximum to 8 bits, a constant one to 0."""
    volume = np.asanyarray(_import_nibabel().load(path).dataobj)
    slices = np.zeros((volume.shape[2], *volume.shape[:2]), np.uint8)
    for index in range(len(slices)):
        values = volume[:, :, index].astype(np.float64)
        low, high = values.min(), values.max()
        if 0 < high - low < np.inf:
            slices[index] = (values - low) / (high - low) * 255  # cut off, not rounded, as in TPS
    return slices


def _list_slices(
    name: str, path: pathlib.Path, label: Shaped[np.ndarray, "H W D"], reader: _Reader
) -> list[Sample]:
    """The samples of one volume; the masks, which compress well, are made at once."""
    samples = []
    for index in range(label.shape[2]):
        values = label[:, :, index]
        anomalous = bool((values == 1).any())
        samples.append(
            Sample(
                image=_Slice(reader, path, index),
                mask=mask_to_png(values > 0) if anomalous else None,
                has_mask=True,
                label=int(anomalous),
                category=name,
                defect="cancer" if anomalous else "good",
                file_name=f"{name}/{index:04}.png",
                subject=name,
                slice=index,
            )
        )
    return samples


def _list_volumes(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The volumes of lungs in a folder by their names, sorted; the archive has hidden files, too."""
    if not folder.is_dir():
        return {}
    paths = [*folder.glob("lung_*.nii"), *folder.glob("lung_*.nii.gz")]
    return {path.name.split(".")[0]: path for path in sorted(paths)}


def _read_label(path: pathlib.Path, volume: pathlib.Path) -> Shaped[np.ndarray, "H W D"]:
    """Reads a label, and reads its volume to the end, so that damage is found before anything is written.

    Raises:
      _DamagedVolume: one of them cannot be used.
    """
    label_header, header = _check(path), _check(volume)
    if label_header.shape != header.shape or len(header.shape) != 3:
        sizes = ["x".join(map(str, one.shape)) for one in (label_header, header)]
        raise _DamagedVolume(volume, f"its label is {sizes[0]}, the volume {sizes[1]}")
    label = np.asanyarray(label_header.dataobj)
    if ((label != 0) & (label != 1)).any():
        raise _DamagedVolume(path, "it holds other values than 0 and 1")
    return label


def _check(path: pathlib.Path) -> Any:
    """Opens a volume, checks that all of it is there and undamaged, and decodes nothing.

    Raises:
      _DamagedVolume: it is not.
    """
    nibabel = _import_nibabel()
    try:
        image = nibabel.load(path)
        size = 0
        # At its end, gzip compares its checksum.
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(BLOCK):
                size += len(block)
    except (
        *(OSError, EOFError, ValueError, zlib.error),
        *(nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError),
    ) as error:
        words = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        reason = words.replace(os.path.join(path.parent, ""), "")  # the same wherever it lies
        raise _DamagedVolume(path, f"it is damaged or no NIfTI volume ({reason})") from error
    if size < image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize:
        raise _DamagedVolume(path, "it is cut short")
    return image


def _import_nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise UserError(
            f'{MsdLung.TITLE} consists of volumes, which need nibabel: pip install -e ".[medical]".'
        ) from error
    return nibabel
