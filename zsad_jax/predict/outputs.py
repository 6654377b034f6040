"""What `predict` leaves: a row, a map and a picture per image; finished rows are not done again."""

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

from zsad_jax.data.preprocess import one_large_image, open_image
from zsad_jax.predict.figure import draw_figure
from zsad_jax.predict.thresholds import decide, find_regions, shortest
from zsad_jax.utils import files
from zsad_jax.utils.images import drawing

Row = dict[str, Any]

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
    "key": "of the weights, prompts and options",
}
OUTPUTS = {"map": ("maps", ".npy"), "figure": ("figures", ".png"), "mask": ("masks", ".png")}
FILES = ("predictions.jsonl", "known_good.jsonl", "run.json", "WARNING.txt")
MARK = ("Software", "zsad_jax.predict")  # in every picture, so that it is known as a result


class Journal:
    """A file of JSON lines to which rows are added as they are finished; a kill loses none of them.

    Args:
      path: the file; rows that an earlier run left there are taken over when their key is the same, their
        image is unchanged and their outputs exist.
      key: stands for everything but the image that a row depends on.
    """

    def __init__(self, path: pathlib.Path, key: str):
        self.path = path
        self._key = key
        self._lock = threading.Lock()
        self._started = False
        self._rows: dict[str, Row] = {}
        self._earlier = {os.path.realpath(row["path"]): row for row in _read_rows(path)}

    def take_over(self, images: Sequence[str]) -> int:
        """Looks for finished rows of these images; returns how many there are."""
        for image in images:
            row = self._earlier.get(os.path.realpath(image))
            if row is not None and row["key"] == self._key and self._is_good(row, image):
                self._rows[image] = {**row, "path": image}
        return len(self._rows)

    def others(self, images: Iterable[str]) -> int:
        """How many earlier rows belong to other images."""
        return len(self._earlier.keys() - {os.path.realpath(image) for image in images})

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    def __getitem__(self, image: str) -> Row:
        return self._rows[image]

    def add(self, row: Row) -> None:
        """Adds a finished row; from any thread."""
        row = {**row, "key": self._key}
        with self._lock:
            if not self._started:  # what was not taken over goes now
                self._write(self._rows.values())
                self._started = True
            self._rows[row["path"]] = row
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_to_line(row))

    def finish(self, images: Sequence[str]) -> list[Row]:
        """Puts the rows into the order of the images; returns them."""
        rows = [self._rows[image] for image in images if image in self._rows]
        self._write(rows)
        return rows

    def _is_good(self, row: Row, image: str) -> bool:
        outputs = [self.path.parent / row[kind] for kind in OUTPUTS if kind in row]
        try:
            return all(one.exists() for one in outputs) and files.digest(image) == row["sha256"]
        except OSError:
            return False

    def _write(self, rows: Iterable[Row]) -> None:
        text = "".join(map(_to_line, rows))
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            files.write_text(self.path, text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes the outputs of one image at a time; safe to use from several threads.

    Attributes:
      folder: where maps/, figures/ and masks/ lie.
      scale: (low, high) of the colors.
      map_size: the longest side of a map, in pixels.
      threshold: scores from it on are anomalous; None: nothing is decided.
      pixel_threshold: map values from it on are anomalous; None: no masks and regions.
      warning: to be told with every output; "" for none.
      bit_depth: of images, see `Preprocess`.
    """

    folder: pathlib.Path
    scale: tuple[float, float]
    map_size: int
    threshold: float | None = None
    pixel_threshold: float | None = None
    warning: str = ""
    bit_depth: int = 16

    def write(
        self, path: str, score: float, anomaly_map: Float[np.ndarray, "S S"], seconds: float
    ) -> Row:
        """Writes map, figure and mask of an image; returns its row.

        Args:
          path: the image.
          score: its score.
          anomaly_map: its map at the model's size.
          seconds: what the model took.
        """
        with one_large_image(path):
            return self._write(path, score, anomaly_map, seconds)

    def _write(self, path: str, score: float, anomaly_map: np.ndarray, seconds: float) -> Row:
        start = time.monotonic()
        decoded = open_image(path, bit_depth=self.bit_depth)
        image = decoded.image
        score = shortest(score)
        row: Row = {"path": path, "score": score}
        if self.threshold is not None:
            row["decision"] = decide(score, self.threshold)
        row["size"] = list(image.size)
        row["time"] = 0.0  # known in the end; its place is here
        resized = resize_map(anomaly_map, image.size, self.map_size)
        mask = None
        if self.pixel_threshold is not None:
            size = (image.height, image.width)
            mask, row["regions"] = find_regions(resized, self.pixel_threshold, size)
        row |= self._write_files(path, image, resized, mask, self._describe(row))
        row["sha256"] = files.digest(path)
        if decoded.note:
            row["note"] = decoded.note
        if self.warning:
            row["warning"] = self.warning
        row["time"] = round(seconds + time.monotonic() - start, 4)
        return row

    def _write_files(
        self,
        path: str,
        image: Image.Image,
        anomaly_map: np.ndarray,
        mask: np.ndarray | None,
        line: str,
    ) -> dict[str, str]:
        name = output_name(path)
        places = {kind: f"{folder}/{name}{suffix}" for kind, (folder, suffix) in OUTPUTS.items()}
        with files.replaced(self.folder / places["map"]) as temporary:
            np.save(temporary, anomaly_map)
        shown = "/".join(pathlib.PurePath(os.path.realpath(path)).parts[-2:])
        figure = None
        with drawing(f"the picture of {path}"):
            lines = (shown, line)
            figure = draw_figure(
                image, anomaly_map, mask, scale=self.scale, lines=lines, warning=self.warning
            )
        if figure is None:
            del places["figure"]
        else:
            self._save_png(figure, self.folder / places["figure"])
        if mask is None:
            (self.folder / places.pop("mask")).unlink(missing_ok=True)  # of an earlier run
        else:
            full = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
            self._save_png(full, self.folder / places["mask"])
        return places

    def _save_png(self, picture: Image.Image, path: pathlib.Path) -> None:
        words = PngInfo()
        words.add_text(*MARK)
        if self.warning:
            words.add_text("Comment", self.warning)
        with files.replaced(path) as temporary:
            picture.save(temporary, compress_level=1, pnginfo=words)

    def _describe(self, row: Row) -> str:
        """Score, decision and number of regions in a line."""
        parts = [f"score {row['score']:.9g}"]
        if "decision" in row:
            parts.append(f"{row['decision']} (threshold {self.threshold:.9g})")
        if "regions" in row:
            count = len(row["regions"])
            parts.append(f"{count} region{'s' * (count != 1)} >= {self.pixel_threshold:.4g}")
        return " · ".join(parts)


def resize_map(
    anomaly_map: Float[np.ndarray, "S S"], size: tuple[int, int], longest: int
) -> Float[np.ndarray, "h w"]:
    """A map with the aspect of its image, no larger than the image and than `longest`.

    Args:
      anomaly_map: at the model's size; the model saw the whole image, squeezed into a square.
      size: (width, height) of the image.
      longest: limit of the longer side, in pixels.
    """
    factor = min(longest / max(size), 1)
    width, height = (max(round(side * factor), 1) for side in size)
    source = Image.fromarray(np.asarray(anomaly_map, np.float32))
    return np.asarray(source.resize((width, height), Image.Resampling.BILINEAR))


def output_name(path: str) -> str:
    """A name for an image's outputs that no other image has: folder, name, and a digest of the whole path."""
    whole = os.path.realpath(path)
    readable = "_".join(pathlib.PurePath(whole).with_suffix("").parts[-2:])
    readable = re.sub(r"[^\w.-]+", "-", readable)[-60:].strip("-.")
    return f"{readable}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"


def is_output(path: str, folder: pathlib.Path) -> bool:
    """Whether a file was written by an earlier run into its folder; pictures are known by their mark."""
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


def _read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of a journal; a line that a kill has cut is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"path", "key", "sha256"} <= row.keys():
            rows.append(row)
    return rows


def _to_line(row: Row) -> str:
    # ASCII, since names of files need not be valid UTF-8.
    return json.dumps(row, allow_nan=False) + "\n"
