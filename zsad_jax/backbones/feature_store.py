"""Stored features: records of a dataset's images in shards, on disk or in memory.

A set on disk is a folder below `root()` with info.json and, for each shard of about 64 MiB, an .npy file of
records beside a JSON file with the names of the images, their issues, and the checksum of the records.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import IO

import numpy as np
from absl import logging
from jaxtyping import Int

from zsad_jax.data.dataset import ImageBatch
from zsad_jax.data.issues import Issue
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.records import parse_json, sealed, unsealed

SHARD_BYTES = 2**26
FREE_SHARE, FREE_BYTES = 0.05, 2e9  # of a disk; the smaller one stays free
INFO = "info.json"
TRUTH = ("aspect", "labels", "category", "index", "has_mask", "valid")

Text = tuple[str, Sequence[Sequence[str]], Sequence[Sequence[str]]]  # file name, issues, notes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """Description of a set, which info.json holds.

    Attributes:
      blocks: of the vision tower, whose patch tokens are stored; None: unknown.
      images: number of images of the dataset.
      rows: images that were encoded at a time.
      row_bytes: size of the record of an image.
    """

    key: str
    dataset: str
    backbone: str
    image_size: int
    blocks: Sequence[int] | None
    images: int
    rows: int
    row_bytes: int
    created: str = dataclasses.field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))

    @property
    def num_bytes(self) -> int:
        return self.images * self.row_bytes

    def __str__(self) -> str:
        blocks = f", blocks {', '.join(map(str, self.blocks))}" if self.blocks else ""
        size = f"{self.images:,} images, {self.num_bytes / 1e9:.1f} GB"
        return f"{self.dataset} ({self.backbone}, {self.image_size} px{blocks}): {size}"


def root() -> pathlib.Path:
    """Returns the folder of all sets."""
    return files.home() / "features"


def record_type(leaves: Sequence[tuple[np.dtype, tuple[int, ...]]], image_size: int) -> np.dtype:
    """Returns the type of an image's record: its features, a field for each leaf, and its ground truth."""
    # .npy files have no name for bfloat16, whose bits are stored as integers.
    features = [
        (f"leaf{i}", np.uint16 if dtype == "bfloat16" else dtype, shape)
        for i, (dtype, shape) in enumerate(leaves)
    ]
    truth = zip(TRUTH, ("f8", "i4", "i4", "i4", "?", "?"), strict=True)
    return np.dtype([*features, *truth, ("masks", "u1", -(-(image_size**2) // 8))], align=True)


class Store:
    """The records of a dataset's images, on disk or, without a folder, in memory.

    A set on disk is locked while the object lives, so that it cannot be removed.
    """

    def __init__(self, info: Info, dtype: np.dtype, folder: pathlib.Path | None):
        """Opens a set; shards that are missing or damaged are not part of it until they are added."""
        self.info, self.folder, self._dtype = info, folder, dtype
        self._shard_rows = max(SHARD_BYTES // (info.rows * info.row_bytes), 1) * info.rows
        self._memory: dict[int, np.ndarray] = {}
        self._texts: dict[int, Sequence[Text]] = {}
        if folder is None:
            return
        self._lock = _lock(folder)
        if _read_info(folder) is None:
            files.write_json(folder / INFO, sealed(dataclasses.asdict(info)))
        for shard in range(-(-info.images // self._shard_rows)):
            path = self._path(shard)
            texts = _read_texts(path)
            if texts is not None:
                self._texts[shard] = texts
            elif path.exists():
                logging.warning("%s is damaged. Its images are encoded again.", path)

    def describe(self) -> str:
        """Returns in words where the records are."""
        place = self.folder or "memory"
        return f"stored in {place}" if len(self.missing()) else f"read from {place}"

    def missing(self) -> Int[np.ndarray, " m"]:
        """Returns the positions of the images without a record."""
        positions = np.arange(self.info.images)
        return positions[~np.isin(positions // self._shard_rows, list(self._texts))]

    def add(self, batch: ImageBatch, leaves: Sequence[np.ndarray]) -> None:
        """Adds the next batch of a shard, which is stored with its last image.

        Raises `OSError` if the disk is full.
        """
        shard, offset = divmod(int(batch.index[0]), self._shard_rows)
        if offset == 0:
            self._part, self._part_texts = [], []
        records = np.zeros(len(batch.index), self._dtype)
        for name, leaf in zip(self._dtype.names or (), leaves, strict=False):
            records[name] = leaf.view(self._dtype[name].base)
        for name in TRUTH:
            records[name] = getattr(batch, name)
        records["masks"] = np.packbits(batch.masks.reshape(len(records), -1), axis=1)
        self._part.append(records[batch.index >= 0])
        self._part_texts += _texts_of(batch)[: len(self._part[-1])]
        if batch.index.max() + 1 in ((shard + 1) * self._shard_rows, self.info.images):
            whole, self._part = np.concatenate(self._part), []
            if self.folder is None:
                self._memory[shard] = whole
            else:
                with files.replaced(self._path(shard)) as temporary:
                    np.save(temporary, whole)
                    stored = {"images": self._part_texts, "crc32": _checksum(temporary)}
                    # Before the records take their name, with which the shard is complete.
                    files.write_json(self._path(shard).with_suffix(".json"), sealed(stored))
            self._texts[shard] = self._part_texts

    def read(self, positions: Int[np.ndarray, " n"]) -> tuple[np.ndarray, list[Text]]:
        """Returns records and texts of images; the position -1 is a row of padding."""
        found = np.zeros(len(positions), self._dtype)
        found["index"], found["aspect"] = -1, 1
        texts: list[Text] = [("", (), ())] * len(positions)
        shards, offsets = np.divmod(positions, self._shard_rows)
        for shard in np.unique(shards[positions >= 0]).tolist():
            rows = np.flatnonzero(shards == shard)
            # Copied and unmapped: mapped pages of a file count as memory of the process.
            mapped = self._memory.get(shard) if self.folder is None else None
            records = np.load(self._path(shard), mmap_mode="r") if mapped is None else mapped
            found[rows] = records[offsets[rows]]
            for row in rows.tolist():
                texts[row] = self._texts[shard][offsets[row]]
        return found, texts

    def _path(self, shard: int) -> pathlib.Path:
        assert self.folder is not None
        return self.folder / f"{shard:05}.npy"


def to_batch(records: np.ndarray, texts: Sequence[Text], image_size: int) -> ImageBatch:
    """Returns the ground truth of records, without images."""
    bits = np.unpackbits(records["masks"], axis=1, count=image_size**2)
    return ImageBatch(
        images=None,
        masks=bits.view(np.bool_).reshape(-1, image_size, image_size),
        **{name: records[name].copy() for name in TRUTH},
        file_names=tuple(name for name, _, _ in texts),
        issues=tuple(Issue(*one) for _, issues, _ in texts for one in issues),
        notes=tuple(Issue(*one) for _, _, notes in texts for one in notes),
    )


def _texts_of(batch: ImageBatch) -> list[Text]:
    """Returns the texts of each row; of rows with the same file name, the first gets all issues."""
    found: dict[str, tuple[list[Issue], list[Issue]]] = {}
    for number, issues in enumerate((batch.issues, batch.notes)):
        for issue in issues:
            found.setdefault(issue.file, ([], []))[number].append(issue)
    return [(name, *found.pop(name, ([], []))) for name in batch.file_names]


# Sets in memory, which a later part of the same run uses again.
_kept: dict[str, Store] = {}


def open_store(info: Info, dtype: np.dtype, place: str) -> Store:
    """Opens a set on "disk", or in "memory", where this process keeps it until others need the room."""
    if place == "disk":
        return Store(info, dtype, root() / info.key)
    return _kept.setdefault(info.key, Store(info, dtype, None))


def choose_place(cache: str, max_gb: float, infos: Sequence[Info]) -> tuple[str, str]:
    """Returns where sets are kept, "disk", "memory" or "none", and the reason for "none".

    Args:
      cache: one of these, or "auto" for the first that has room.
      max_gb: largest size of all sets together.

    Raises:
      UserError: there is no room where `cache` asks for it.
    """
    sizes = {path.name: size for path, _, size, _ in list_sets()}
    kept = {key: store.info.num_bytes for key, store in _kept.items()}
    room = {"disk": _free_disk(), "memory": available_memory() / (4 if cache == "auto" else 1)}
    for place, stored in (("disk", sizes), ("memory", kept)):
        more = sum(max(one.num_bytes - stored.get(one.key, 0), 0) for one in infos)
        allowed = min(room[place], max_gb * 1e9 - sum(stored.values()))
        if cache in ("auto", place) and (not more or more <= allowed):
            return place, ""
    if kept:
        _kept.clear()
        return choose_place(cache, max_gb, infos)
    gb = [
        x / 1e9 for x in (sum(one.num_bytes for one in infos), sum(sizes.values()), *room.values())
    ]
    reason = (
        f"{gb[0]:.1f} GB do not fit. features.max_gb is {max_gb:g}, of which {gb[1]:.1f} GB are in use on"
        f" disk; {gb[2]:.1f} GB of {root()} and {gb[3]:.1f} GB of memory are available"
    )
    if cache == "auto":
        return "none", reason
    raise UserError(
        f"config.features.cache is {cache!r}, but {reason}. Raise config.features.max_gb, set"
        " config.features.cache='auto', or remove stored features: python -m zsad_jax.backbones features clear."
    )


def _free_disk() -> float:
    with contextlib.suppress(OSError):
        root().mkdir(parents=True, exist_ok=True)
        usage = shutil.disk_usage(root())
        if os.access(root(), os.W_OK):
            return max(usage.free - min(FREE_SHARE * usage.total, FREE_BYTES), 0)
    return 0


def available_memory() -> int:
    """Returns the memory that the process can still take, in bytes."""
    with (
        contextlib.suppress(OSError, StopIteration),
        open("/proc/meminfo", encoding="ascii") as file,
    ):
        return int(next(line for line in file if "MemAvailable" in line).split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # such as on macOS


def list_sets() -> Iterator[tuple[pathlib.Path, Info | None, int, float]]:
    """Yields the folder of each set, its description if it can be read, its size and time of last use."""
    for path in sorted(root().iterdir()) if root().is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if files.is_removable(path):
                size = sum(one.stat().st_size for one in path.glob("*.npy"))
                yield path, _read_info(path), size, path.stat().st_mtime


def clear(keys: Collection[str]) -> Iterator[tuple[str, int | None]]:
    """Removes sets, all if no keys are given; yields each key with its size, None if it is in use.

    Raises `UserError` for an unknown key.
    """
    known = {path.name: size for path, _, size, _ in list_sets()}
    for key in keys:
        if key not in known:
            raise UserError(f"{key!r} is not the key of stored features. {suggest(key, known)}")
    for key in keys or known:
        size: int | None = known[key]
        with _open_lock(root() / key) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Renamed first: a process that opens the set meanwhile starts a new one.
                gone = (root() / key).rename(root() / f"{key}.removed")
                files.remove(gone)
            except BlockingIOError:
                size = None
        yield key, size


def _open_lock(folder: pathlib.Path) -> IO[bytes]:
    files.make_removable(folder)
    return open(folder / files.LOCK, "ab")


def _lock(folder: pathlib.Path) -> IO[bytes]:
    """Locks a set against `clear` until the file is closed, and removes what killed runs left in it."""
    while True:
        file = _open_lock(folder)
        with contextlib.suppress(OSError):  # in use, or a network file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.sweep(folder)
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):  # removed before it was locked
            if os.path.samestat(os.stat(file.name), os.fstat(file.fileno())):
                os.utime(folder)  # the time of its last use
                return file


def _read_info(folder: pathlib.Path) -> Info | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Info(**unsealed(parse_json((folder / INFO).read_bytes())) or {})
    return None


def _read_texts(path: pathlib.Path) -> Sequence[Text] | None:
    """Returns the texts of a shard; None if something of it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        stored = unsealed(parse_json(path.with_suffix(".json").read_bytes())) or {}
        if stored.get("crc32") == _checksum(path):
            return list(stored["images"])
    return None


def _checksum(path: pathlib.Path) -> int:
    """Returns the CRC-32 of a file, which each process reads once."""
    status = path.stat()
    return _read_checksum(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2**14)
def _read_checksum(path: pathlib.Path, *_: int) -> int:
    total = 0
    with open(path, "rb") as file:
        while part := file.read(2**20):
            total = zlib.crc32(part, total)
    return total
