"""Outputs of `predict`: a record, a map and a picture per image; finished records are reused."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zsad_jax.predict.figure import draw_figure
from zsad_jax.predict.score import ImageFile, ScoredImage, fit_map
from zsad_jax.predict.thresholds import decide, find_regions, shortest
from zsad_jax.utils import files
from zsad_jax.utils.errors import plural
from zsad_jax.utils.images import drawing

Record = dict[str, Any]

COLUMNS = {
    "path": "the image",
    "score": "higher = more anomalous",
    "decision": "anomalous if score >= threshold; only where a threshold was given",
    "size": "[width, height] of the image in pixels",
    "time": "seconds: its share of the model's batch, and writing its outputs",
    "regions": "where map >= pixel threshold: box [left, top, width, height], area, peak; image pixels",
    "map": "float32, the image's aspect",
    "figure": "overlay and heat map",
    "mask": "255 where map >= pixel threshold, at the image's size",
    "sha256": "of the image file",
    "note": "what decoding has changed",
    "warning": "only of a demonstration model",
    "key": "of the weights, prompts and options",
}
OUTPUTS = {"map": ("maps", ".npy"), "figure": ("figures", ".png"), "mask": ("masks", ".png")}
FILES = ("predictions.jsonl", "known_good.jsonl", "run.json", "WARNING.txt")
MARK = ("Software", "zsad_jax.predict")  # in every picture, so that it is known as a result


class Journal:
    """A file of JSON lines to which records are added as they are finished; a kill loses none of them.

    Args:
      path: the file. Records of an earlier run are reused if their key is the same, their image is unchanged
        and their outputs exist.
      key: of everything but the image that a record depends on.
    """

    def __init__(self, path: pathlib.Path, key: str):
        self.path = path
        self._key = key
        self._lock = threading.Lock()
        self._started = False
        self._records: dict[str, Record] = {}
        # By real path: the same image may be given by another relative path.
        self._earlier = {os.path.realpath(one["path"]): one for one in _read_records(path)}

    def reuse(self, images: Sequence[str]) -> int:
        """Looks for finished records of these images; returns how many there are."""
        for image in images:
            record = self._earlier.get(os.path.realpath(image))
            if record is not None and self._is_good(record, image):
                self._records[image] = {**record, "path": image}
        return len(self._records)

    def others(self, images: Iterable[str]) -> int:
        """Returns the number of earlier records of other images."""
        return len(self._earlier.keys() - {os.path.realpath(image) for image in images})

    def __contains__(self, image: str) -> bool:
        return image in self._records

    def add(self, record: Record) -> None:
        """Adds a finished record; from any thread."""
        record = {**record, "key": self._key}
        with self._lock:
            if not self._started:  # drops what is not reused
                self._write(self._records.values())
                self._started = True
            self._records[record["path"]] = record
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_to_line(record))

    def finish(self, images: Sequence[str]) -> list[Record]:
        """Puts the records into the order of the images; returns them."""
        records = [self._records[image] for image in images if image in self._records]
        self._write(records)
        return records

    def _is_good(self, record: Record, image: str) -> bool:
        outputs = [self.path.parent / record[kind] for kind in OUTPUTS if kind in record]
        try:
            return (
                record["key"] == self._key
                and all(one.exists() for one in outputs)
                and files.digest(image) == record["sha256"]
            )
        except OSError:
            return False

    def _write(self, records: Iterable[Record]) -> None:
        text = "".join(map(_to_line, records))
        # A repeated run changes nothing, not even dates.
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            files.write_text(self.path, text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes the outputs of one image at a time; safe to use from several threads.

    Attributes:
      folder: parent of maps/, figures/ and masks/.
      scale: (low, high) of the colors.
      map_size: the longest side of a map, in pixels.
      threshold: images with score >= threshold are anomalous; None: no decisions.
      pixel_threshold: the same for map values; None: no masks and regions.
      warning: in every output.
    """

    folder: pathlib.Path
    scale: tuple[float, float]
    map_size: int
    threshold: float | None = None
    pixel_threshold: float | None = None
    warning: str = ""

    def write(self, scored: ScoredImage) -> Record:
        """Writes map, figure and mask of an image; returns its record."""
        start = time.monotonic()
        file = scored.file
        # Decided on the number that is written, so that the record is consistent with itself.
        score = shortest(scored.score)
        record: Record = {"path": file.path, "score": score}
        if self.threshold is not None:
            record["decision"] = decide(score, self.threshold)
        record["size"] = list(file.size)
        record["time"] = 0.0  # set below; this keeps the order of the columns
        resized = resize_map(scored.anomaly_map, file.size, self.map_size)
        mask = None
        if self.pixel_threshold is not None:
            mask, record["regions"] = find_regions(resized, self.pixel_threshold, file.size[::-1])
        record |= self._write_files(file, resized, mask, self._describe(record))
        record["sha256"] = file.sha256
        if file.notes:
            record["note"] = "; ".join(note.description for note in file.notes)
        if self.warning:
            record["warning"] = self.warning
        record["time"] = round(scored.seconds + time.monotonic() - start, 4)
        return record

    def _write_files(
        self, file: ImageFile, anomaly_map: np.ndarray, mask: np.ndarray | None, line: str
    ) -> dict[str, str]:
        name = output_name(file.path)
        places = {kind: f"{folder}/{name}{suffix}" for kind, (folder, suffix) in OUTPUTS.items()}
        with files.replaced(self.folder / places["map"]) as temporary:
            # In NumPy's format, since a PNG cannot hold float32 values.
            np.save(temporary, anomaly_map)
        shown = "/".join(pathlib.PurePath(os.path.realpath(file.path)).parts[-2:])
        figure = None
        with drawing(f"the picture of {file.path}"):
            lines = (shown, line)
            figure = draw_figure(
                file.panel, anomaly_map, mask, scale=self.scale, lines=lines, warning=self.warning
            )
        # A figure is an extra: without it the record is still complete.
        if figure is None:
            del places["figure"]
        else:
            self._save_png(figure, self.folder / places["figure"])
        if mask is None:
            (self.folder / places.pop("mask")).unlink(missing_ok=True)  # of an earlier run
        else:
            # Nearest neighbor: other kernels make values between the two of a mask.
            full = Image.fromarray(mask).resize(file.size, Image.Resampling.NEAREST)
            self._save_png(full, self.folder / places["mask"])
        return places

    def _save_png(self, picture: Image.Image, path: pathlib.Path) -> None:
        words = PngInfo()
        words.add_text(*MARK)
        if self.warning:
            words.add_text("Comment", self.warning)
        with files.replaced(path) as temporary:
            picture.save(temporary, compress_level=1, pnginfo=words)

    def _describe(self, record: Record) -> str:
        """Returns score, decision and number of regions as a line."""
        parts = [f"score {record['score']:.9g}"]
        if "decision" in record:
            parts.append(f"{record['decision']} (threshold {self.threshold:.9g})")
        if "regions" in record:
            count = plural(len(record["regions"]), "region")
            parts.append(f"{count} >= {self.pixel_threshold:.4g}")
        return " · ".join(parts)


def resize_map(
    anomaly_map: Float[np.ndarray, "S S"], size: tuple[int, int], longest: int
) -> Float[np.ndarray, "h w"]:
    """Returns a map with the aspect of its image of `size` (width, height), see `fit_map`.

    The model saw the whole image, resized to a square.
    """
    source = Image.fromarray(np.asarray(anomaly_map, np.float32))
    return np.asarray(source.resize(fit_map(size, longest), Image.Resampling.BILINEAR))


def output_name(path: str) -> str:
    """Returns a unique name for an image's outputs: folder, name, and a digest of the whole path."""
    whole = os.path.realpath(path)
    # The digest keeps images of the same name apart, the rest lets people find them.
    readable = "_".join(pathlib.PurePath(whole).with_suffix("").parts[-2:])
    readable = re.sub(r"[^\w.-]+", "-", readable)[-60:].strip("-.")
    return f"{readable}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"


def is_output(path: str, folder: pathlib.Path) -> bool:
    """Returns whether an earlier run wrote a file into its folder; pictures are recognized by their mark."""
    place, name = os.path.split(os.path.realpath(path))
    if place == os.path.realpath(folder):
        return name in FILES
    places = {os.path.realpath(folder / part): suffix for part, suffix in OUTPUTS.values()}
    if place not in places:
        return False
    if places[place] == ".npy":
        return name.endswith(".npy")
    try:
        with open(path, "rb") as file:
            return "\0".join(MARK).encode() in file.read(256)  # words come before pixels
    except OSError:
        return False


def _read_records(path: pathlib.Path) -> list[Record]:
    """Returns the records of a journal; a line that a kill has cut is ignored."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"path", "key", "sha256"} <= record.keys():
            records.append(record)
    return records


def _to_line(record: Record) -> str:
    # ASCII, since names of files need not be valid UTF-8.
    return json.dumps(record, allow_nan=False) + "\n"
