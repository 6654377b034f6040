"""Features of datasets: encoded once and stored, or encoded as they are read.

A stored set is a folder with info.json and, for each shard of about 16 MiB, an .npy file of records, which are
the features and the ground truth of an image, beside a JSON file with file names, issues and a checksum.
"""

import contextlib
import copy
import dataclasses
import fcntl
import functools
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8

import zsad_jax
from zsad_jax.backbones.base import Backbone, Params
from zsad_jax.backbones.transformer import place
from zsad_jax.data.dataset import Dataset, ImageBatch, join_batches
from zsad_jax.data.issues import UNREADABLE, Issue
from zsad_jax.data.loader import load_batches, report_notes
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils import distributed, files, sharding
from zsad_jax.utils.config import check_fields, within
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import DeviceClock, one_late, progress
from zsad_jax.utils.records import fingerprint, parse_json, sealed, unsealed

SHARD_BYTES = 2**24  # a shard is in memory while its images are encoded
HASH = "blake2b"  # faster than SHA-256 without hardware for it
FREE_SHARE, FREE_GB = 0.05, 2.0  # of a disk; the smaller one stays free
# Of a device's free memory, which features on disk may take there; twice that from memory.
SHARE_OF_DEVICE = 0.25
TRUTH = ("?", "i4", "i4", "i4", "?", "f8")  # types of `ImageBatch`, from has_mask to aspect


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Options of stored features.

    Attributes:
      cache: where the features of a dataset are kept: "memory", for this run; "disk", also for later ones;
        "none", to encode the images each time; "auto", on disk or in memory where they fit, else "none".
      dtype: "bfloat16" halves the size of stored features; None: that of the backbone.
      max_gb: largest size of all stored features together, in GB.
    """

    cache: Literal["auto", "none", "memory", "disk"] = "auto"
    dtype: Literal["bfloat16"] | None = None
    max_gb: float = within(40.0, 0)

    def __post_init__(self) -> None:
        check_fields(self)


Images = Float[Array, "b H W 3"]


class FeaturesFn(Hashable, Protocol):
    """A function that computes features of normalized images: any pytree with leading axis b."""

    def __call__(self, frozen: Params, params: Params, images: Images, /) -> PyTree: ...


# Encoders by key, which is equal for encoders of the same features over one backbone. With the key None the
# features are the 8-bit images, for methods whose features depend on parameters. Features are stored if their
# key is a tuple of plain values, the first of which are the blocks of the tower: it can be found again.
Encoders = Mapping[Hashable, FeaturesFn | None]
# Functions of the frozen parameters and 8-bit images.
CompiledEncoders = Mapping[Hashable, Any]
FeaturesByKey = dict[Hashable, PyTree]
FeatureStream = Iterator[tuple[ImageBatch, FeaturesByKey]]

_stored_here: set[pathlib.Path] = set()  # shards that this process has stored


class Features:
    """The features and the ground truth of a dataset's images, by position.

    Attributes:
      dataset: whose images they are.
      rows: images that are encoded at a time, a multiple of the number of devices.
      stored: whether the features of all keys are stored, on disk or in memory.
      encoders: the compiled encoder of each key, from 8-bit images; None where features are the images.
      clock: of the devices while images are encoded and, by `evaluate`, scored.
    """

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        encoders: Encoders,
        config: FeaturesConfig,
        *,
        mesh: Mesh,
        rows: int,
        num_workers: int | None = None,
    ):
        """Encodes what is not stored yet, if the config asks for it.

        Args:
          encoders: by key, see `Encoders`.
          rows: images that are encoded at a time. The last bits of features depend on it.

        Raises:
          UserError: the features do not fit where the config asks for them.
        """
        self.dataset, self.rows = dataset, sharding.round_up(rows, mesh)
        self.clock = DeviceClock()
        self._backbone, self._config, self._mesh = backbone, config, mesh
        preprocess, size = backbone.preprocess, backbone.preprocess.image_size
        self._load = functools.partial(load_batches, dataset, preprocess, num_workers=num_workers)
        report = distributed.by_main(report_notes)
        # Cached, so that each note is logged once, however often the images are read.
        self._report_notes = functools.cache(functools.partial(report, dataset.name))
        self._frozen = place(backbone.params, mesh)
        fixed = preprocess, mesh, self.rows, config.dtype
        self.encoders: CompiledEncoders
        self.encoders = {k: one and _compile(one, *fixed) for k, one in encoders.items()}
        images = jax.ShapeDtypeStruct((self.rows, size, size, 3), np.uint8)
        self._stores: dict[Hashable, Store] = {
            key: Store(self._describe(key), jax.eval_shape(encode, self._frozen, images))
            for key, encode in self.encoders.items()
            if encode and isinstance(key, tuple) and len(dataset) and config.cache != "none"
        }
        try:
            if self._stores and not _open_stores(self._stores.values(), config):
                self._stores.clear()
            self._fill()
        except OSError as error:
            if not files.is_disk_full(error):
                raise
            full = (
                f"Features of {dataset.name} cannot be stored: the disk of {error.filename} is full."
                " Make room, or add --config.features.cache=none."
            )
            if config.cache != "auto":
                raise UserError(full) from error
            logging.warning("%s The images are encoded each time they are read.", full)
            self._stores.clear()
        self.stored = len(self._stores) == len(encoders)

    def select(self, keys: Iterable[Hashable]) -> "Features":
        """Returns the features with the given keys."""
        selected = copy.copy(self)
        selected.encoders = {key: self.encoders[key] for key in keys}
        selected._stores = {key: self._stores[key] for key in keys if key in self._stores}
        selected.stored = len(selected._stores) == len(selected.encoders)
        return selected

    def read(
        self,
        order: Int[np.ndarray, "n ..."],
        rows: int,
        *,
        pixels: bool = False,
        encode: bool = True,
    ) -> FeatureStream:
        """Yields batches of `rows` images in an order, the last one padded, with their features by key.

        The position -1 is a row of padding, whose features can have any value. If nothing is stored, mosaics
        can be read as well, see `load_batches`. `rows` is a multiple of the number of devices, over which
        features are split. The batches have images only with `pixels`; without them, notes on the images are
        logged at the end. Without `encode`, features that are not stored are missing, and the key None has the
        images that they are encoded from.
        """
        batches = self._own_rows(order, rows)
        loaded: Iterator[ImageBatch | None] = itertools.repeat(None)
        if pixels or not self.stored:
            indices = batches.reshape(-1, *order.shape[1:]).tolist()
            loaded = self._load(batch_size=batches.shape[1], indices=indices)
        notes: list[Issue] = []
        for positions, batch in zip(batches, loaded, strict=False):
            found = {key: store.read(positions) for key, store in self._stores.items()}
            stored = {key: tree for key, (_, tree) in found.items()}
            features = sharding.split_batch(stored, self._mesh)
            batch = batch or next(truth for truth, _ in found.values())
            if not self.stored:
                images = sharding.split_batch(batch.images, self._mesh)
                for key in self.encoders.keys() - features.keys() if encode else {None}:
                    encoder = self.encoders.get(key)
                    features[key] = encoder(self._frozen, images) if encoder else images
            notes += itertools.chain(*batch.notes)
            yield batch if pixels else batch._replace(images=None), features
        if not pixels:
            self._report_notes(tuple(sorted(itertools.chain(*distributed.gather(notes)))))

    def _own_rows(
        self, order: Int[np.ndarray, "n ..."], rows: int
    ) -> Int[np.ndarray, "batches r ..."]:
        """Returns the positions in each batch of an order that this process loads."""
        missing = [(0, -len(order) % rows), *[(0, 0)] * (order.ndim - 1)]
        padded = np.pad(order, missing, constant_values=-1)
        batches = padded.reshape(-1, rows, *order.shape[1:])
        return batches[:, sharding.own_rows(rows, self._mesh)]

    def replay(self, order: Int[np.ndarray, " n"]) -> Callable[[], FeatureStream]:
        """Returns a function that yields what `read` does, at each call; what fits is kept on the devices.

        In a run of several processes, each gets all rows, on the host.
        """
        kept: list[tuple[ImageBatch, FeaturesByKey]] = []
        room = SHARE_OF_DEVICE * self._free_memory() * self._mesh.size

        def run() -> FeatureStream:
            if len(kept) * self.rows >= len(order):
                yield from kept
                return
            kept.clear()
            size = 0
            for batch, features in self.read(order, self.rows):
                if jax.distributed.is_initialized():
                    batch, features = _gather(batch, features)
                size += sum(leaf.nbytes for leaf in jax.tree.leaves(features))
                kept.append((batch, features))
                if size > room:
                    kept.clear()
                yield batch, features

        return run

    def _free_memory(self) -> float:
        """Returns the free memory of a device, in bytes; the smallest of all processes."""
        free = distributed.memory_share() / self._mesh.local_mesh.size  # on the CPU
        if stats := self._mesh.local_devices[0].memory_stats():
            free = stats["bytes_limit"] - stats["bytes_in_use"]
        return float(min(distributed.gather(free)))

    def resident(self) -> tuple[ImageBatch, FeaturesByKey] | None:
        """Returns all images, without pixels, with features on every device; None if they do not fit.

        This is for features in memory, and for those that "auto" has put on disk.
        """
        stores = self._stores.values()
        share = SHARE_OF_DEVICE * (1 if any(store.folder for store in stores) else 2)
        needed = sum(store.size for store in stores) * 1e9 * (2 if self._config.dtype else 1)
        if not self.stored or self._config.cache == "disk" or needed > share * self._free_memory():
            return None
        features: FeaturesByKey = {}
        for key, store in self._stores.items():
            batch, found = store.read(np.arange(len(self.dataset)))
            features[key] = sharding.replicate(found, self._mesh)
        self._report_notes(tuple(sorted(itertools.chain(*batch.notes))))
        return batch, features

    def _describe(self, key: tuple[Any, ...]) -> dict[str, Any]:
        """Returns what info.json holds. The key is of all that features depend on, down to their last bits."""
        dataset, backbone, device = self.dataset, self._backbone, self._mesh.devices.flat[0]
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        data = dataset.name, dataset.categories, dataset.fingerprint(), self.rows, SHARD_BYTES
        model = backbone.name, backbone.digest, backbone.options, backbone.preprocess, key
        machine = device.device_kind, dict(self._mesh.shape), precision, jax.__version__
        code = zsad_jax.__version__, _digest_code()
        return {
            "key": fingerprint(data, model, machine, code, self._config.dtype),
            "dataset": dataset.name,
            "backbone": backbone.name,
            "blocks": key[0],
            "image_size": backbone.preprocess.image_size,
            "images": len(dataset),
            "rows": self.rows,
            "dtype": self._config.dtype,
        }

    def _fill(self) -> None:
        """Encodes what the stores lack, in one pass over the images."""
        missing = {key: {*store.missing()} for key, store in self._stores.items()}
        order, encode = sorted(set().union(*missing.values())), self.encoders

        def run() -> FeatureStream:
            batches = self._own_rows(np.array(order, int), self.rows)
            # Shards hold multiples of `rows`, so that a batch is missing as a whole or not at all.
            loaded = self._load(batch_size=batches.shape[1], indices=batches.ravel().tolist())
            for first, batch in zip(order[:: self.rows], loaded, strict=True):
                images = sharding.split_batch(batch.images, self._mesh)
                keys = [key for key in missing if first in missing[key]]
                yield batch, {key: encode[key](self._frozen, images) for key in keys}

        label = f"encode {self.dataset.name}"
        started = one_late(self.clock.watch(run()))
        batches = progress(started, total=len(order), label=label, step=self.rows)
        for batch, features in batches if order else ():
            whole, found = _gather(batch, features)
            for key, tree in found.items():
                self._stores[key].add(whole, tree)


def _gather(batch: ImageBatch, features: FeaturesByKey) -> tuple[ImageBatch, FeaturesByKey]:
    """Returns the rows of all processes, without images, on the host."""
    from jax.experimental.multihost_utils import process_allgather

    parts = distributed.gather(batch._replace(images=None))
    found = process_allgather([*features.values()], tiled=True)
    return join_batches(parts), dict(zip(features, found, strict=True))


# Kept, so that each tower is compiled once for all datasets.
@functools.lru_cache(maxsize=8)
def _compile(
    encode: FeaturesFn, preprocess: Preprocess, mesh: Mesh, rows: int, dtype: str | None
) -> Any:
    """Returns the compiled function that encodes 8-bit images and rounds floating-point features to `dtype`."""

    def round_floats(x: Array) -> Array:
        # XLA would remove a cast and its inverse.
        return jax.lax.reduce_precision(x, 8, 7) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def run(frozen: Params, images: UInt8[Array, "b S S 3"]) -> PyTree:
        images = jax.lax.with_sharding_constraint(images, sharding.over_data(mesh))
        found = encode(frozen, {}, preprocess.normalize(images))
        return jax.tree.map(round_floats, found) if dtype else found

    def run_in_parts(frozen: Params, images: UInt8[Array, "b S S 3"]) -> PyTree:
        # Matrix products of other sizes round differently: every image is encoded among `rows` of them.
        missing = -len(images) % rows
        padded = jnp.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
        if len(padded) == rows:
            found = run(frozen, padded)
        else:
            parts = padded.reshape(-1, rows, *images.shape[1:])
            found = jax.lax.map(lambda part: run(frozen, part), parts)
            found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
        return jax.tree.map(lambda x: x[: len(images)], found)

    return jax.jit(run_in_parts, out_shardings=sharding.over_data(mesh))


@functools.cache
def _digest_code() -> str:
    """Returns a digest of the code of backbones and of the preparation of images."""
    folder = pathlib.Path(__file__).parent
    sources = [*folder.glob("*.py"), *folder.parent.glob("data/preprocess.py")]
    return fingerprint(*map(files.digest, sorted(sources)))


class Store:
    """The records of a dataset's images, in memory or, after `open_folder`, on disk."""

    def __init__(self, info: Mapping[str, Any], features: PyTree):
        """Describes an empty set: the entries of info.json, and the features of a batch as shapes."""
        size, rows = info["image_size"], info["rows"]
        truth: list[Any] = [np.zeros((rows, size, -(-size // 8)), np.uint8)]
        truth += [np.zeros(rows, dtype) for dtype in TRUTH]
        self._leaves, self._structure = jax.tree.flatten((ImageBatch(None, *truth), features))
        rounded = {"float32": info["dtype"] or "float32"}
        self._types = [np.dtype(rounded.get(x.dtype.name, x.dtype)) for x in self._leaves]
        # .npy files have no name for bfloat16, whose bits are stored as integers.
        types = ["u2" if kind == "bfloat16" else kind for kind in self._types]
        fields = [(f"leaf{i}", x, self._leaves[i].shape[1:]) for i, x in enumerate(types)]
        self._dtype = np.dtype(fields, align=True)
        self._shard_rows = max(SHARD_BYTES // (rows * self._dtype.itemsize), 1) * rows
        positions = np.arange(info["images"])
        self._shards = np.split(positions, positions[self._shard_rows :: self._shard_rows])
        self.info = {**info, "row_bytes": self._dtype.itemsize}
        self.size = info["images"] * self._dtype.itemsize / 1e9  # GB
        self.folder: pathlib.Path | None = None
        self._memory: dict[int, np.ndarray] = {}
        self._texts: dict[int, list[Any]] = {}  # of each image: its file name, issues and notes

    def __str__(self) -> str:
        info, blocks = self.info, f", blocks {', '.join(map(str, self.info['blocks']))}"
        tower = f"{info['backbone']}, {info['image_size']} px{blocks}"
        return f"{info['dataset']} ({tower}): {info['images']:,} images, {self.size:.3g} GB"

    def open_folder(self) -> None:
        """Opens the stored shards, and locks them against `clear` while the object lives."""
        self.folder = root() / self.info["key"]
        # Beside the set, and not removed with it: a process that waits for the lock then finds an empty set.
        self._lock = open(self.folder.with_suffix(".lock"), "ab")  # noqa: SIM115 - see above
        os.utime(self._lock.name)  # the time of the last use
        # Not if it is in use, or new, or on a network file system without locks.
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.sweep(self.folder)
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        files.make_removable(self.folder)
        if not (self.folder / "info.json").exists():
            files.write_json(self.folder / "info.json", self.info)
        self._paths = [self.folder / f"{shard:05}.npy" for shard in range(len(self._shards))]
        for shard, (path, positions) in enumerate(zip(self._paths, self._shards, strict=True)):
            with contextlib.suppress(OSError, ValueError):
                stored = unsealed(parse_json(path.with_suffix(".json").read_bytes())) or {}
                count, digest = len(stored.get("images", ())), stored.get(HASH)
                if (count, digest) == (len(positions), files.digest(path, HASH)):
                    self._texts[shard] = stored["images"]
            if shard not in self._texts and path.exists():
                logging.warning("%s is damaged. Its images are encoded again.", path)
            kinds = {kind for _, found, _ in self._texts.get(shard, ()) for kind, *_ in found}
            if path not in _stored_here and kinds & {*UNREADABLE}:  # perhaps only at that time
                del self._texts[shard]

    def missing(self) -> list[int]:
        """Returns the positions of the images without a record."""
        return [x for i, shard in enumerate(self._shards) if i not in self._texts for x in shard]

    def add(self, batch: ImageBatch, features: PyTree) -> None:
        """Adds the next batch of a shard, which is stored with its last image."""
        shard, offset = divmod(int(batch.index[0]), self._shard_rows)
        if not offset:
            self._part = np.zeros(len(self._shards[shard]), self._dtype)
            self._part_texts: list[Any] = []
        part = self._part[offset : offset + self.info["rows"]]
        masks = np.packbits(batch.masks, axis=-1)
        truth = batch._replace(images=None, masks=masks, file_names=(), issues=(), notes=())
        leaves = jax.tree.leaves((truth, features))
        for name, kind, leaf in zip(self._dtype.names or (), self._types, leaves, strict=True):
            part[name] = leaf[: len(part)].astype(kind).view(part[name].dtype)
        texts = zip(batch.file_names, batch.issues, batch.notes, strict=True)
        self._part_texts += itertools.islice(texts, len(part))
        if len(self._part_texts) < len(self._part):
            return
        if self.folder:
            path = self._paths[shard]
            with files.replaced(path) as temporary:
                np.save(temporary, self._part)
                # Before the records take their name, with which the shard is complete.
                stored = {"images": self._part_texts, HASH: files.digest(temporary, HASH)}
                files.write_json(path.with_suffix(".json"), sealed(stored))
            _stored_here.add(path)
        else:
            self._memory[shard] = self._part
        self._texts[shard] = self._part_texts
        del self._part

    def read(self, positions: Int[np.ndarray, " n"]) -> tuple[ImageBatch, PyTree]:
        """Returns ground truth, without images, and features; the position -1 is a row of padding."""
        records = np.zeros(len(positions), self._dtype)
        texts: list[Any] = [("", (), ())] * len(positions)
        for shard in np.unique(positions[positions >= 0] // self._shard_rows).tolist():
            # Unmapped after the copy: mapped pages of a file count as memory of the process.
            stored = np.load(self._paths[shard], "r") if self.folder else self._memory[shard]
            rows = np.flatnonzero(positions // self._shard_rows == shard)
            offsets = positions[rows] - shard * self._shard_rows
            records[rows] = stored[offsets]
            for row, offset in zip(rows.tolist(), offsets.tolist(), strict=True):
                texts[row] = self._texts[shard][offset]
        columns = zip(self._dtype.names or (), self._types, self._leaves, strict=True)
        leaves = [records[n].copy().view(x).astype(leaf.dtype) for n, x, leaf in columns]
        truth, features = jax.tree.unflatten(self._structure, leaves)
        names, *found = zip(*texts, strict=True)
        issues, notes = (tuple(tuple(Issue(*x) for x in row) for row in rows) for rows in found)
        masks = np.unpackbits(truth.masks, axis=-1, count=self.info["image_size"]).view(np.bool_)
        truth = truth._replace(masks=masks, index=positions.astype(np.int32))
        return truth._replace(file_names=names, issues=issues, notes=notes), features


def root() -> pathlib.Path:
    """Returns the folder of all sets."""
    return files.home() / "features"


def _open_stores(stores: Collection[Store], config: FeaturesConfig) -> bool:
    """Finds sets on disk or chooses memory; returns whether there is room for them, and logs where or why not.

    Raises `UserError` if there is no room where the config asks for it.
    """
    sizes = {key: one.size for key, one in list_sets().items()}
    needed, used, disk = sum(one.size for one in stores), sum(sizes.values()), 0.0
    left = sum(max(one.size - sizes.get(one.info["key"], 0), 0) for one in stores)
    with contextlib.suppress(OSError):
        root().mkdir(parents=True, exist_ok=True)
        total, _, free = (x / 1e9 for x in shutil.disk_usage(root()))
        disk = max(free - min(FREE_SHARE * total, FREE_GB), 0)
    share = 4 if config.cache == "auto" else 2
    memory = distributed.memory_share() / 1e9 / share
    on_disk = left <= max(min(disk, config.max_gb - used), 0) and os.access(root(), os.W_OK)
    on_disk = on_disk and config.cache in ("auto", "disk") and not jax.distributed.is_initialized()
    in_memory = config.cache in ("auto", "memory") and needed <= min(memory, config.max_gb)
    reason = (
        f"needs {needed:.3g} GB, but {max(config.max_gb - used, 0):.3g} GB of features.max_gb={config.max_gb:g}"
        f" are left, {disk:.3g} GB are free in {root()} and {memory:.3g} GB of memory are available"
    )
    if config.cache in ("disk", "memory") and not (on_disk or in_memory):
        raise UserError(
            f"config.features.cache={config.cache!r} {reason}. Raise config.features.max_gb, choose"
            " 'auto', or remove stored features: python -m zsad_jax.backbones features clear."
        )
    for store in stores:
        if on_disk:
            store.open_folder()
        words = f"{'stored in' if len(store.missing()) else 'read from'} {store.folder or 'memory'}"
        place = words if on_disk or in_memory else f"not stored: {reason}"
        logging.info("Features of %s, %s", store, place)
    return on_disk or in_memory


class StoredSet(NamedTuple):
    """A set on disk: its info.json ({} if damaged), its size in GB and the time of its last use."""

    info: dict[str, Any]
    size: float
    last_used: float


def list_sets() -> dict[str, StoredSet]:
    """Returns the stored sets by key."""
    found = {}
    for lock in sorted(root().glob("*.lock")):
        folder, info = lock.with_suffix(""), {}
        with contextlib.suppress(OSError, ValueError):
            info = parse_json((folder / "info.json").read_bytes())
        with contextlib.suppress(FileNotFoundError):  # it was removed
            _, *sizes = (one.stat().st_size for one in (folder, *folder.glob("[0-9]*.npy")))
            found[folder.name] = StoredSet(info, sum(sizes) / 1e9, lock.stat().st_mtime)
    return found


def clear(key: str) -> bool:
    """Removes a set; returns False if it is in use."""
    with contextlib.suppress(BlockingIOError), open(root() / f"{key}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.remove(root() / key)
        return True
    return False
