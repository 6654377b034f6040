"""From samples to decoded, resized batches of constant shape, in worker processes, in order."""

import contextlib
import dataclasses
import functools
import gc
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Dataset, ImageBatch, Sample, read_sample
from zsad_jax.data.issues import DOUBTFUL, Issue, group_issues, summarize_issues
from zsad_jax.data.preprocess import Preprocess, one_large_image, resize_image, resize_mask
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.images import set_up_decoders

MAX_WORKERS = 16
# A worker process takes one to two seconds to start; below this many images threads are done sooner.
MIN_IMAGES_FOR_WORKERS = 512
MAX_THREADS = 4
TEXTS = ("file_names", "issues", "notes")  # the fields of a batch that are no arrays

_start_lock = threading.Lock()


class Row(NamedTuple):
    """A decoded sample of a batch; image and mask are None when they could not be read."""

    position: int
    sample: Sample
    image: np.ndarray | None
    mask: np.ndarray | None
    issues: tuple[Issue, ...] = ()
    notes: tuple[Issue, ...] = ()


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

    A sample whose image cannot be read keeps its row, with `valid=False` and an issue in `issues`; one whose
    mask cannot be used has `has_mask=False`. The last batch is padded with rows whose index is -1.

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
    return _iterate(_Selection(dataset, order), decode, collate, workers, tell_notes)


def _build_pipeline(source, decode, collate, workers):
    import grain

    # Batches are put together before the conversion to an iterator: each worker then makes whole
    # batches, which keeps the order.
    batches = (
        grain.MapDataset.source(source).map(decode).batch(collate.batch_size, batch_fn=collate)
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


def _iterate(
    selection: "_Selection", decode: "_Decode", collate: "_Collate", workers: int, tell_notes: bool
) -> Iterator[ImageBatch]:
    name = selection.dataset.name
    notes: list[Issue] = []
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_in_file(selection)) if workers else selection
        iterator = iter(_build_pipeline(source, decode, collate, workers))
        if workers:
            stack.callback(_release_shared_memory)
        stack.callback(iterator.close)
        with _main_not_run_again() if workers else contextlib.nullcontext():
            batch = _take(iterator, name, workers)
        while batch is not None:
            notes += batch.notes if tell_notes else ()
            yield batch
            batch = _take(iterator, name, workers)
        _report(name, notes)


def _report(name: str, notes: Sequence[Issue]) -> None:
    """Logs the notes, a line for each kind; images that were scaled differently do not compare."""
    for kind in group_issues(notes):
        scales = {note.detail for note in kind if note.kind == "image_scaled"}
        doubtful = len(scales) > 1 or kind[0].kind in DOUBTFUL
        level = logging.WARNING if doubtful else logging.INFO
        logging.log(level, "%s: %s", name, summarize_issues(kind))


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


def _take(iterator: Iterator[ImageBatch], name: str, workers: int) -> ImageBatch | None:
    """The next batch, copied out of the shared memory that workers write to (small in containers)."""
    try:
        batch = next(iterator, None)
    # Grain raises it for a worker that is gone. Decoding raises nothing.
    except RuntimeError as error:
        if not workers:
            raise
        raise UserError(
            f"A process that decodes the images of {name} was killed or ran out of memory. Run the same"
            " command again to resume; --config.num_workers=0 decodes without further processes."
        ) from error
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

    def __getitem__(self, position: int) -> tuple[int, Sample | Issue]:
        index = int(self.order[position])
        return index, read_sample(self.dataset, index)


@dataclasses.dataclass(frozen=True)
class _FromFile:
    """A selection in a file, which each worker process reads once."""

    path: str
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> tuple[int, Sample | Issue]:
        return _read_selection(self.path)[position]


@functools.lru_cache(maxsize=1)
def _read_selection(path: str) -> _Selection:
    with open(path, "rb") as file:
        return pickle.load(file)


@contextlib.contextmanager
def _in_file(selection: _Selection) -> Iterator[_FromFile]:
    """Writes a selection to a temporary file.

    A process is started with its arguments in a pipe. If it is killed before it reads them, writing more
    than the pipe holds (64 KiB) blocks forever, so that they must stay small.
    """
    import cloudpickle  # takes classes of a user's script by value

    with tempfile.NamedTemporaryFile(prefix="zsad_jax-", suffix=".pickle") as file:
        cloudpickle.dump(selection, file)
        file.flush()
        yield _FromFile(file.name, len(selection))


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Decodes and resizes one sample."""

    preprocess: Preprocess
    mask_size: int
    mask_threshold: int

    def __call__(self, item: tuple[int, Sample | Issue]) -> Row:
        index, sample = item
        if isinstance(sample, Issue):
            unknown = Sample(image=b"", file_name=sample.file)
            return Row(index, unknown, None, None, issues=(sample,))
        if not sample.file_name:
            name = sample.image if isinstance(sample.image, str) else f"#{index}"
            sample = dataclasses.replace(sample, file_name=name)
        try:
            with one_large_image(sample.image, *sample.masks):
                return self._decode(index, sample)
        except Exception as error:  # one file must not end the run, whatever a decoder raises
            issue = Issue("image_unreadable", sample.file_name, f"{type(error).__name__}: {error}")
            return Row(index, sample, None, None, issues=(issue,))

    def _decode(self, index: int, sample: Sample) -> Row:
        found = examine(sample, threshold=self.mask_threshold, bit_depth=self.preprocess.bit_depth)
        issues, notes = tuple(found.issues), tuple(found.notes)
        if found.image is None:
            return Row(index, sample, None, None, issues, notes)
        image = resize_image(found.image, self.preprocess)
        if found.mask is not None:
            mask = resize_mask(found.mask, self.mask_size)
            return Row(index, sample, image, mask, notes=issues + notes)
        if sample.mask is not None:
            sample = dataclasses.replace(sample, has_mask=False)
        return Row(index, sample, image, None, issues, notes)


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
            file_names=(*(row.sample.file_name for row in rows), *[""] * (b - len(rows))),
            issues=tuple(issue for row in rows for issue in row.issues),
            notes=tuple(note for row in rows for note in row.notes),
        )
        for i, row in enumerate(rows):
            batch.index[i] = row.position
            if row.image is None:
                continue
            batch.labels[i] = row.sample.label
            batch.category[i] = self.categories.index(row.sample.category)
            batch.valid[i] = True
            batch.images[i] = row.image
            batch.has_mask[i] = row.sample.has_mask
            if row.mask is not None:
                batch.masks[i] = row.mask
        return batch


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
    set_up_decoders()
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
