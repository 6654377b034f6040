"""Outputs of `predict`: a record and files of each image; what an earlier run computed is reused."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zsad_jax.data.issues import UNREADABLE, Issue
from zsad_jax.predict.figure import draw_figure, draw_thumbnail
from zsad_jax.predict.folders import Folders
from zsad_jax.predict.score import ImageFile, ScoredImage, fit_map
from zsad_jax.predict.thresholds import decide, find_regions, shortest
from zsad_jax.utils import files
from zsad_jax.utils.errors import plural
from zsad_jax.utils.images import ANOMALOUS, INK, NORMAL, drawing, rewrite_line, scale_of
from zsad_jax.utils.records import fingerprint, parse_json, sealed, unsealed

Record = dict[str, Any]

COLUMNS = {
    "path": "the image",
    "category": "what it shows, in the words of a prompt",
    "score": "higher = more anomalous",
    "threshold": "of the score; only where one was given",
    "decision": "anomalous if score >= threshold",
    "size": "[width, height] of the image in pixels",
    "time": "seconds: its share of the model's batch",
    "regions": "where map >= pixel threshold: box [left, top, width, height], area, peak; image pixels",
    "map": "float32, the image's aspect",
    "figure": "image, heat map and overlay",
    "mask": "255 where map >= pixel threshold, at the image's size",
    "thumbnail": "image and overlay, small",
    "raw_map": "float32, the model's resolution; the other files are made of it without inference",
    "sha256": "of the image file",
    "note": "what decoding has changed",
    "notes": "the same: [kind, detail] of each",
    "warning": "only of a demo model",
    "error": "why the image has no score",
    "key": "of the weights, prompts and category",
    "outputs": "of the options that the files depend on",
    "drawn": "the decision in the figure",
    "check": "of the row: one that has been changed is not reused",
}
SCORED = ("path", "category", "score", "size", "time", "raw_map", "sha256", "note", "notes", "key")
OUTPUTS = {
    "map": ("maps", ".npy"),
    "figure": ("figures", ".jpg"),
    "mask": ("masks", ".png"),
    "thumbnail": ("thumbnails", ".jpg"),
    "raw_map": ("raw_maps", ".npy"),
}
TABLES = ("predictions.jsonl", "predictions.csv", "known_good.jsonl")
FILES = (*TABLES, "index.html", "run.json", "WARNING.txt")
MARK = ("Software", "zsad_jax.predict")  # in every picture, so that it is known as a result


class Journal:
    """A file of JSON lines to which records are added as they are finished; a kill loses none of them."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = threading.Lock()
        self._started = False
        self.records: dict[str, Record] = {}
        # By real path: the same image may be given by another relative path.
        self.earlier = {os.path.realpath(one["path"]): one for one in _read_records(path)}

    def reuse(self, images: Sequence[str], key_of: Callable[[str], str]) -> int:
        """Looks for earlier records of these images that are still valid; returns how many there are.

        The key of the record is the same, the image is unchanged, and its map, if any, can be read.
        `key_of` returns the key of all that the record of an image depends on but its file.
        """
        for image in images:
            record = self.earlier.get(os.path.realpath(image), {})
            with contextlib.suppress(OSError, ValueError):
                if "raw_map" in record:
                    read_raw_map(self.path.parent, image)
                if record.get("key") == key_of(image) and record["sha256"] == files.digest(image):
                    self.records[image] = record | {"path": image}
        return len(self.records)

    def start(self) -> None:
        """Drops what is not reused, once, before outputs are replaced that a record may still describe."""
        with self._lock:
            if not self._started:
                self._write(self.records.values())
                self._started = True

    def add(self, record: Record) -> None:
        """Adds a finished record; from any thread."""
        self.start()
        with self._lock:
            self.records[record["path"]] = record
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_to_line(record))

    def finish(self, images: Sequence[str], errors: Mapping[str, str] = {}) -> list[Record]:
        """Puts the records into the order of the images; returns them, and those of images with an error."""
        known = self.records | {one: {"path": one, "error": why} for one, why in errors.items()}
        records = [known[image] for image in images if image in known]
        self._write(records)
        return records

    def _write(self, records: Iterable[Record]) -> None:
        write_changed(self.path, "".join(map(_to_line, records)))


class Outcome(NamedTuple):
    """The images of a run, a record of each, how many scores are of an earlier run, and issues."""

    images: Sequence[str]
    records: Sequence[Record]
    reused: int
    issues: Sequence[Issue]
    ignored: Sequence[Issue]

    @property
    def scored(self) -> list[Record]:
        """The records with a score, highest first."""
        scored = [record for record in self.records if "score" in record]
        return sorted(scored, key=lambda record: -record["score"])

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of files and images; all others add up to that of the files."""
        unreadable = sum(issue.kind in UNREADABLE for issue in self.issues)
        return {
            "num_files": len(self.images) + len(self.ignored),
            "num_images": len(self.images),
            "num_scored": len(self.scored) - self.reused,
            "num_reused": self.reused,
            "num_unreadable": unreadable,
            "num_failed": len(self.issues) - unreadable,
            "num_ignored": len(self.ignored),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes the outputs of one image at a time; safe to use from several threads."""

    folder: pathlib.Path  # parent of maps/, figures/ and masks/
    scale: Sequence[float] | None  # (low, high) of the colors; None: of each map
    map_size: int  # the longest side of a map, in pixels
    folders: Folders = dataclasses.field(default_factory=Folders)
    threshold: float | None = None  # of images without their own in `folders`; None: no decisions
    pixel_threshold: float | None = None  # of map values; None: no masks and regions
    warning: str = ""  # in every output

    def decided(self, record: Record) -> Record:
        """Returns a record with the decision of these options and what is still valid.

        Without "drawn", its figure shows another decision; without "outputs", its files are of other options.
        """
        exist = all((self.folder / record[kind]).exists() for kind in OUTPUTS if kind in record)
        if record.get("outputs") != self._outputs_key or not exist:
            record = {name: record[name] for name in SCORED if name in record}
        decision = self._decide(record["path"], record["score"])
        same = record.get("drawn", "") == decision.get("decision")
        changed = ("threshold", "decision", *["drawn"] * (not same))
        return {name: record[name] for name in record.keys() - changed} | decision

    def keep(self, scored: ScoredImage) -> ScoredImage:
        """Stores the map at the model's resolution; returns its argument."""
        _save_array(self.folder / _place("raw_map", scored.file.path), scored.anomaly_map)
        return scored

    def redraw(self, record: Record) -> Record:
        """Replaces the decision in a figure; raises `OSError` if the figure cannot be read."""
        if "figure" in record:
            with Image.open(self.folder / record["figure"]) as figure:
                words, color = self._describe(record)
                rewrite_line(figure, 1, words, color=color)
                self._save_jpeg(figure, self.folder / record["figure"])
        return record | {"drawn": record.get("decision")}

    def write(self, scored: ScoredImage) -> Record:
        """Writes map, pictures and mask of an image; returns its record."""
        file = scored.file
        # Decided on the number that is written, so that the record is consistent with itself.
        score = shortest(scored.score)
        record = describe_file(file) | {"category": self.folders.of(file.path).category}
        record |= {"score": score, **self._decide(file.path, score), "size": list(file.size)}
        record["time"] = round(scored.seconds, 4)
        resized = resize_map(scored.anomaly_map, file.size, self.map_size)
        mask = None
        if self.pixel_threshold is not None:
            mask, record["regions"] = find_regions(resized, self.pixel_threshold, file.size[::-1])
        record |= self._write_files(file, resized, mask, record)
        if self.warning:
            record["warning"] = self.warning
        return record | {"outputs": self._outputs_key, "drawn": record.get("decision")}

    def _decide(self, path: str, score: float) -> Record:
        own = self.folders.of(path).threshold
        used = self.threshold if own is None else own
        return {} if used is None else {"threshold": used, "decision": decide(score, used)}

    @functools.cached_property
    def _outputs_key(self) -> str:
        return fingerprint(self.scale, self.map_size, self.pixel_threshold, self.warning)

    def _write_files(
        self, file: ImageFile, anomaly_map: np.ndarray, mask: np.ndarray | None, record: Record
    ) -> dict[str, str]:
        places = {kind: _place(kind, file.path) for kind in OUTPUTS}
        made = {"map", "raw_map"}
        _save_array(self.folder / places["map"], anomaly_map)
        name = "/".join(pathlib.PurePath(os.path.abspath(file.path)).parts[-2:])
        lines = [(name, INK), self._describe(record), *[(self.warning, INK)] * bool(self.warning)]
        # Pictures are an extra: without them the record is still complete.
        with drawing(f"the picture of {file.path}"):
            low, high = self.scale or scale_of([anomaly_map])
            figure = draw_figure(file.panel, anomaly_map, mask, scale=(low, high), lines=lines)
            thumbnail = draw_thumbnail(file.panel, anomaly_map, scale=(low, high))
            self._save_jpeg(figure, self.folder / places["figure"])
            self._save_jpeg(thumbnail, self.folder / places["thumbnail"], quality=75)
            made |= {"figure", "thumbnail"}
        if mask is not None:
            made.add("mask")
            # Nearest neighbor: other kernels make values between the two of a mask.
            full = Image.fromarray(mask).resize(file.size, Image.Resampling.NEAREST)
            words = PngInfo()
            words.add_text(*MARK)
            words.add_text("Comment", self.warning)
            with files.replaced(self.folder / places["mask"]) as temporary:
                full.save(temporary, compress_level=1, pnginfo=words)
        return {kind: place for kind, place in places.items() if kind in made}

    def _save_jpeg(self, picture: Image.Image, path: pathlib.Path, quality: int = 90) -> None:
        comment = "\0".join((*MARK, self.warning))
        with files.replaced(path) as temporary:
            # With full color resolution, a figure that is saved again loses next to nothing.
            picture.save(temporary, quality=quality, subsampling=0, comment=comment)

    def _describe(self, record: Record) -> tuple[str, str]:
        """Returns score, decision and number of regions as a line, and its color."""
        parts = [f"score {format_score(record['score'])}"]
        parts += [record["decision"]] if "decision" in record else []
        parts += [plural(len(record["regions"]), "region")] if "regions" in record else []
        color = {"anomalous": ANOMALOUS, "normal": NORMAL}.get(record.get("decision", ""), INK)
        return " · ".join(parts), color


def describe_file(file: ImageFile) -> Record:
    """Returns the part of a record that does not depend on the model."""
    record: Record = {"path": file.path, "sha256": file.sha256}
    if file.notes:
        record["note"] = "; ".join(note.description for note in file.notes)
        record["notes"] = [[note.kind, note.detail] for note in file.notes]
    return record


def format_score(score: float) -> str:
    """Returns a score with three significant digits."""
    return f"{score:#.3g}".rstrip(".")


def read_raw_map(folder: pathlib.Path, image: str) -> Float[np.ndarray, "S S"]:
    """Returns the stored map of an image; raises `OSError` or `ValueError` if there is no such array."""
    raw = np.lib.format.open_memmap(folder / _place("raw_map", image), mode="r")
    if raw.ndim != 2 or raw.dtype != np.float32:
        raise ValueError("not a map")
    return raw


def remove_unused(folder: pathlib.Path, records: Iterable[Record]) -> None:
    """Removes the files of images or options that are no longer part of the records, and empty folders."""
    used = {folder / record[kind] for record in records for kind in OUTPUTS if kind in record}
    for place, _ in OUTPUTS.values():
        for path in {*folder.glob(f"{place}/*")} - used:
            if is_output(path):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # missing, or not empty
            (folder / place).rmdir()


def write_changed(path: pathlib.Path, text: str) -> None:
    """Writes a text unless the file holds it: a repeated run changes nothing, not even dates."""
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        files.write_text(path, text)


def _save_array(path: pathlib.Path, array: np.ndarray) -> None:
    # In NumPy's format, since a PNG cannot hold float32 values.
    with files.replaced(path) as temporary:
        np.save(temporary, array)


def resize_map(
    anomaly_map: Float[np.ndarray, "S S"], size: tuple[int, int], longest: int
) -> Float[np.ndarray, "h w"]:
    """Returns a map with the aspect of its image of `size` (width, height), which the model saw as a square."""
    source = Image.fromarray(np.asarray(anomaly_map, np.float32))
    return np.asarray(source.resize(fit_map(size, longest), Image.Resampling.BILINEAR))


def output_name(path: str) -> str:
    """Returns a unique name for an image's outputs: folder, name, and a digest of the whole path."""
    whole = os.path.realpath(path)
    # The digest keeps images of the same name apart, the rest lets people find them.
    readable = "_".join(pathlib.PurePath(whole).with_suffix("").parts[-2:])
    readable = re.sub(r"[^\w.-]+", "-", readable)[-60:].strip("-.")
    return f"{readable}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"


def _place(kind: str, path: str) -> str:
    """Returns the name, in the folder of the outputs, of an output of an image."""
    folder, suffix = OUTPUTS[kind]
    return f"{folder}/{output_name(path)}{suffix}"


def is_output(path: files.PathLike) -> bool:
    """Returns whether `predict` wrote a file, into any folder; pictures are recognized by their mark."""
    whole = pathlib.Path(path)
    if whole.suffix == ".npy":
        own = re.search(r"-[0-9a-f]{8}\.npy$", whole.name) is not None
        return own and whole.parent.name in ("maps", "raw_maps")
    if whole.name in (*FILES, files.LOCK):
        return whole.with_name(files.LOCK).exists()
    try:
        with open(path if whole.is_file() else os.devnull, "rb") as file:
            return "\0".join(MARK).encode() in file.read(256)  # words come before pixels
    except OSError:
        return False


def _read_records(path: pathlib.Path) -> list[Record]:
    """Returns the scored records of a journal; lines that are cut or damaged are ignored."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(unsealed(parse_json(line)))
    return [record for record in records if record and "score" in record]


def _to_line(record: Record) -> str:
    # ASCII, since names of files need not be valid UTF-8.
    ordered = {name: record[name] for name in COLUMNS if name in record}
    return json.dumps(sealed(ordered), allow_nan=False) + "\n"
