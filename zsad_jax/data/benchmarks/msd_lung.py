"""MSD lung: CT volumes in slices along their last axis, one category a volume, as in TPS.

A slice is anomalous where its label has a 1, and is scaled from its own minimum and maximum to 8 bits, without
any window. Axes are as stored: the rows of an image are the first axis, so that patients lie on their side.
"""

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

from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Listing
from zsad_jax.data.benchmarks.records import image_to_png, mask_to_png
from zsad_jax.data.dataset import Lazy, Sample
from zsad_jax.data.preprocess import UnreadableImage
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress

IMAGES, LABELS = "imagesTr", "labelsTr"
BLOCK = 1 << 20  # bytes that are read at once
# Threads that work side by side are in one volume, or at the end of one and the start of the next.
VOLUMES_HELD = 2


def is_root(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds labelled volumes of lungs, not of another task."""
    return bool(_list_volumes(folder / IMAGES) and _list_volumes(folder / LABELS))


def list_files(root: pathlib.Path) -> Listing:
    """Lists all slices of the labelled volumes; labels are read, and volumes checked, but not kept."""
    listing = Listing(root)
    _import_nibabel()
    volumes, labels = _list_volumes(root / IMAGES), _list_volumes(root / LABELS)
    listing.known |= {str(path) for path in (*volumes.values(), *labels.values())}
    reader = _Reader()
    for name, path in progress(
        volumes.items(), total=len(volumes), label="Checking volumes", unit="volume"
    ):
        label = labels.pop(name, None)
        if label is None:
            listing.report("mask_missing", path)
            continue
        try:
            listing.add("test", _list_slices(name, path, _read_label(label, path), reader))
        except UnreadableImage as error:
            listing.report("image_unreadable", pathlib.Path(error.name), error.reason)
    for path in labels.values():
        listing.report("mask_unused", path)
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
    """Decodes volumes and holds the last ones, since slices are read one by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = functools.lru_cache(maxsize=VOLUMES_HELD)(read_slices)

    def read(self, path: pathlib.Path) -> UInt8[np.ndarray, "D H W"]:
        """Returns the slices of a volume; other threads wait and then find them here."""
        with self._lock:
            return self._read(path)


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
    """Returns the samples of one volume; masks compress well and are made at once."""
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
    """Returns the volumes of lungs in a folder by name, sorted; the archive has hidden files, too."""
    if not folder.is_dir():
        return {}
    paths = [*folder.glob("lung_*.nii"), *folder.glob("lung_*.nii.gz")]
    return {path.name.split(".")[0]: path for path in sorted(paths)}


def _read_label(path: pathlib.Path, volume: pathlib.Path) -> Shaped[np.ndarray, "H W D"]:
    """Reads a label, and reads its volume to the end, so that damage is found before anything is written."""
    label_header, header = _check(path), _check(volume)
    if label_header.shape != header.shape or len(header.shape) != 3:
        sizes = ["x".join(map(str, one.shape)) for one in (label_header, header)]
        raise UnreadableImage(str(volume), f"its label is {sizes[0]}, the volume {sizes[1]}")
    label = np.asanyarray(label_header.dataobj)
    if ((label != 0) & (label != 1)).any():
        raise UnreadableImage(str(path), "it holds other values than 0 and 1")
    return label


def _check(path: pathlib.Path) -> Any:
    """Opens a volume, checks that all of it is there and undamaged, and decodes nothing."""
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
        reason = words.replace(os.path.join(path.parent, ""), "")  # the same wherever the file is
        raise UnreadableImage(
            str(path), f"it is damaged or not a NIfTI volume ({reason})"
        ) from error
    if size < image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize:
        raise UnreadableImage(str(path), "it is cut short")
    return image


def _import_nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise UserError(
            "Reading the volumes of MSD lung requires nibabel. To install it, run: pip install nibabel"
        ) from error
    return nibabel


LAYOUT = Layout(is_root, list_files)
