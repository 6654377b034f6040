"""From samples to decoded, resized batches of constant shape, in worker processes, in order."""

import contextlib
import dataclasses
import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from zsad_jax.data import remarks
from zsad_jax.data.base import Dataset, Fault, ImageBatch, Sample
from zsad_jax.data.checks import examine
from zsad_jax.data.preprocess import Preprocess, resize_image, resize_mask

MAX_WORKERS = 16
# A worker process takes one to two seconds to start; below this many images threads are done sooner.
MIN_IMAGES_FOR_WORKERS = 512
MAX_THREADS = 4
TEXTS = ("file_names", "faults", "notes")  # the fields of a batch that are no arrays

_start_lock = threading.Lock()


class Row(NamedTuple):
    """One decoded sample of a batch; image and mask are None when it could not be read."""

    position: int
    sample: Sample
    image: np.ndarray | None
    mask: np.ndarray | None
    fault: str = ""
    notes: tuple[str, ...] = ()


def load_batches(
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    num_workers: int | None = None,
    mask_size: int | None = None,
    indices: Sequence[int] | None = None,
    mask_threshold: int = 0,
    seed: int | None = None,
    tell_notes: bool = True,
) -> Iterator[ImageBatch]:
    """Decodes and resizes a dataset in the background and hands it over in batches of constant shape.

    A sample that cannot be read keeps its row, with `valid` False and a `Fault` that says why. The last
    batch is padded with rows whose index is -1.

    Args:
      dataset: samples; must be picklable when worker processes are used.
      preprocess: how the backbone wants its images.
      batch_size: rows of every batch.
      num_workers: processes that decode; 0 = threads of this process; None = one a core, at most 16,
        and 0 for small datasets.
      mask_size: side of the masks in pixels; None = `preprocess.image_size`.
      indices: which samples, in which order; None = all.
      mask_threshold: largest grey value (of 255) in a mask that is still no defect.
      seed: shuffles the samples; the same seed gives the same order whatever the workers. None = no shuffling.
      tell_notes: log what is worth knowing of the images, once a kind, when all are through.

    Yields:
      Batches in order. Close the iterator (or exhaust it) to stop the workers.
    """
    order = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    size = preprocess.image_size if mask_size is None else mask_size
    decode = _Decode(preprocess, size, mask_threshold)
    collate = _Collate(tuple(dataset.categories), batch_size, preprocess.image_size, size)
    num_batches = -(-len(order) // batch_size)
    workers = _choose_workers(num_workers, len(order), num_batches, collate.num_bytes)
    pipeline = _build_pipeline(_Selection(dataset, order), decode, collate, workers)
    return _iterate(pipeline, workers, dataset.name, tell_notes)


def _build_pipeline(selection, decode, collate, workers):
    import grain

    # Batches are put together before the conversion to an iterator: each worker then makes whole
    # batches, which keeps the order.
    batches = (
        grain.MapDataset.source(selection).map(decode).batch(collate.batch_size, batch_fn=collate)
    )
    if not workers:
        threads = min(_num_cores(), MAX_THREADS)
        return batches.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
    _settle_flags()
    options = grain.multiprocessing.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=1
    )
    in_order = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return batches.to_iter_dataset(in_order).mp_prefetch(options, worker_init_fn=_prepare_worker)


def _iterate(pipeline, workers: int, name: str, tell_notes: bool) -> Iterator[ImageBatch]:
    iterator = iter(pipeline)
    notes: list[Fault] = []
    try:
        with _main_not_run_again() if workers else contextlib.nullcontext():
            batch = _take(iterator)
        while batch is not None:
            notes += batch.notes if tell_notes else ()
            yield batch
            batch = _take(iterator)
        for kind in remarks.group(notes):
            logging.info("%s: %s", name, kind)
    finally:
        iterator.close()
        if workers:
            _release_shared_memory()


def _release_shared_memory() -> None:
    """Frees what the batches lay in, which would be complained about when the process ends.

    Grain's finished threads keep the last batch in a reference cycle, and one thread frees the memory
    of discarded batches one by one: a task given to it ends when those before it are done.
    """
    gc.collect()
    module = sys.modules.get("grain._src.python.ipc.shared_memory_array")
    pool = getattr(getattr(module, "SharedMemoryArray", None), "_del_thread_pool", None)
    if pool is not None:
        pool.apply(int)


def _take(iterator: Iterator[ImageBatch]) -> ImageBatch | None:
    """The next batch, copied out of the shared memory that workers write to (small in containers)."""
    batch = next(iterator, None)
    if batch is None:
        return None
    copies: dict[str, Any] = {
        name: np.array(value) for name, value in batch._asdict().items() if name not in TEXTS
    }
    return batch._replace(**copies)


@dataclasses.dataclass(frozen=True)
class _Selection:
    """Chosen samples of a dataset, each with its position there."""

    dataset: Dataset
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[int, Sample]:
        index = int(self.order[position])
        return index, self.dataset[index]


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Decodes and resizes one sample."""

    preprocess: Preprocess
    mask_size: int
    mask_threshold: int

    def __call__(self, item: tuple[int, Sample]) -> Row:
        index, sample = item
        found = examine(sample, threshold=self.mask_threshold)
        if found.image is None or not found.usable:
            return Row(index, sample, None, None, fault="; ".join(found.faults))
        mask = None if found.mask is None else resize_mask(found.mask, self.mask_size)
        notes = (found.scaling, *found.faults, *found.notes)
        image = resize_image(found.image, self.preprocess)
        return Row(index, sample, image, mask, notes=tuple(filter(None, notes)))


@dataclasses.dataclass(frozen=True)
class _Collate:
    """Puts rows together to a batch, padded to its constant size."""

    categories: tuple[str, ...]
    batch_size: int
    image_size: int
    mask_size: int

    @property
    def num_bytes(self) -> int:
        return self.batch_size * (3 * self.image_size**2 + self.mask_size**2)

    def __call__(self, rows: Sequence[Row]) -> ImageBatch:
        b = self.batch_size
        batch = ImageBatch(
            images=np.zeros((b, self.image_size, self.image_size, 3), np.uint8),
            masks=np.zeros((b, self.mask_size, self.mask_size), np.bool_),
            has_mask=np.zeros(b, np.bool_),
            labels=np.zeros(b, np.int32),
            category=np.zeros(b, np.int32),
            index=np.full(b, -1, np.int32),
            valid=np.zeros(b, np.bool_),
            file_names=tuple(map(_label, rows)) + ("",) * (b - len(rows)),
            faults=tuple(Fault(_label(row), row.fault) for row in rows if row.fault),
            notes=tuple(Fault(_label(row), note) for row in rows for note in row.notes),
        )
        for i, row in enumerate(rows):
            batch.index[i] = row.position
            batch.labels[i] = row.sample.label
            batch.category[i] = self.categories.index(row.sample.category)
            if row.image is None:
                continue
            batch.valid[i] = True
            batch.images[i] = row.image
            batch.has_mask[i] = row.sample.has_mask
            if row.mask is not None:
                batch.masks[i] = row.mask
        return batch


def _label(row: Row) -> str:
    return row.sample.file_name or (
        row.sample.image if isinstance(row.sample.image, str) else f"#{row.position}"
    )


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _choose_workers(wanted: int | None, num_images: int, num_batches: int, batch_bytes: int) -> int:
    if wanted is None:
        cores = _num_cores()
        wanted = (
            min(cores, MAX_WORKERS) if cores > 1 and num_images >= MIN_IMAGES_FOR_WORKERS else 0
        )
    workers = min(wanted, num_batches)
    with contextlib.suppress(OSError):
        # A worker has up to three batches in shared memory; without room there the kernel kills it.
        room = shutil.disk_usage("/dev/shm").free // (3 * batch_bytes)
        if room < workers:
            logging.warning(
                "Shared memory (/dev/shm) has room for %d of %d loading processes.", room, workers
            )
            return room
    return workers


def _settle_flags() -> None:
    """Lets grain read its own command line flags where nobody parses any: in notebooks, scripts and tests."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = 1


def _prepare_worker(index: int, count: int) -> None:
    """Runs first in every worker: it leaves Ctrl-C to the parent and ends when the parent is killed."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _main_not_run_again() -> Iterator[None]:
    """Keeps started processes from importing the main script again.

    They have no use for it (what they run travels by value), a script without an
    `if __name__ == "__main__"` guard would start anew in each of them, and the import takes time.
    """
    main = sys.modules["__main__"]
    with _start_lock:
        saved = {
            name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)
        }
        main.__spec__ = None
        main.__dict__.pop("__file__", None)
        try:
            yield
        finally:
            main.__dict__.update(saved)
