"""Loading of datasets in decoded, resized batches of constant shape, by threads or worker processes."""

import atexit
import contextlib
import dataclasses
import fcntl
import functools
import gc
import itertools
import os
import pathlib
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Dataset, ImageBatch, Sample, read_sample
from zsad_jax.data.issues import DOUBTFUL, SCALED, Issue, group_issues, summarize_issues
from zsad_jax.data.preprocess import Preprocess, one_large_image, resize_image, resize_mask
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.images import set_up_decoders
from zsad_jax.utils.threads import num_cores

MAX_WORKERS = 16
# A worker process takes one to two seconds to start; threads are faster for fewer images.
MIN_IMAGES_FOR_WORKERS = 512
MAX_THREADS = 4
SELECTION = "zsad_jax-selection-"  # prefix of temporary files

_start_lock = threading.Lock()


class Row(NamedTuple):
    """A row of a batch; image and mask are None if they cannot be used."""

    position: int
    sample: Sample
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    issues: tuple[Issue, ...] = ()
    notes: tuple[Issue, ...] = ()
    aspect: float = 1.0


def load_batches(
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    num_workers: int | None = None,
    indices: Sequence[int] | Sequence[Sequence[int]] | None = None,
    mask_threshold: int = 0,
) -> Iterator[ImageBatch]:
    """Decodes and resizes a dataset in the background and returns it in batches of constant shape.

    A sample whose image cannot be read keeps its row, with `valid=False` and an issue. A sample whose mask
    cannot be used has `has_mask=False`. The last batch is padded with rows whose index is -1.

    Args:
      dataset: must be picklable if worker processes are used.
      preprocess: the preparation of images for the backbone.
      batch_size: rows of every batch.
      num_workers: processes that decode; 0 = threads; None = one per core, at most 16, 0 for small datasets.
      indices: the samples to load, in this order, with -1 for a row of padding; None = all. Four of them in
        place of one are a mosaic (row by row), or a sample alone where the last three are -1. A mosaic has the
        index and the file name of its first sample, and is anomalous if any of them is.
      mask_threshold: largest gray value (of 255) in a mask that is not a defect.

    Yields:
      Batches in order. Close the iterator (or exhaust it) to stop the workers.

    Example:
      >>> from zsad_jax.data import open_dataset
      >>> dataset = open_dataset("synthetic_target", "datasets")
      >>> batches = load_batches(dataset, Preprocess(image_size=56), batch_size=4, indices=[0, 1, 2])
      >>> batch = next(batches)
      >>> batch.images.shape, batch.valid.tolist()
      ((4, 56, 56, 3), [True, True, True, False])
    """
    order = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
    steps = _Steps(preprocess, mask_threshold, batch_size, tuple(dataset.categories))
    num_batches = -(-len(order) // batch_size)
    batch_bytes = batch_size * 4 * preprocess.image_size**2  # RGB and mask
    workers = _choose_workers(num_workers, len(order), num_batches, batch_bytes)
    # A generator would report bad arguments only when the first batch is requested.
    return _iterate(_Selection(dataset, order), steps, workers)


def _build_pipeline(read: "_Read", length: int, steps: "_Steps", workers: int) -> Any:
    import grain

    # Batching before the conversion to an iterator lets each worker make whole batches, which keeps the order.
    rows = grain.MapDataset.range(length).map(read).map(steps.decode)
    batches = rows.batch(steps.batch_size, batch_fn=steps.collate)
    if not workers:
        # Pillow releases Python's lock while it decodes and resizes, so that threads use several cores.
        threads = min(num_cores(), MAX_THREADS)
        return batches.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
    _settle_flags()
    # One batch in advance per worker: batches wait in shared memory, which is small in containers.
    options = grain.multiprocessing.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=1
    )
    # Workers decode in their only thread: further threads would compete for the same cores.
    in_order = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return batches.to_iter_dataset(in_order).mp_prefetch(options, worker_init_fn=_prepare_worker)


def _iterate(selection: "_Selection", steps: "_Steps", workers: int) -> Iterator[ImageBatch]:
    name = selection.dataset.name
    with contextlib.ExitStack() as stack:
        read = stack.enter_context(_in_file(selection)) if workers else selection.read
        iterator = iter(_build_pipeline(read, len(selection.order), steps, workers))
        if workers:
            # An error that ends the process holds this frame until Python ends, which is too late.
            atexit.register(stack.close)
            stack.callback(atexit.unregister, stack.close)
            stack.callback(_release_shared_memory)
        # Callbacks run in reverse order: the workers stop before their memory is freed.
        stack.callback(iterator.close)
        # Workers start when the first batch is requested.
        with _starting_workers() if workers else contextlib.nullcontext():
            batch = _take(iterator, name, workers)
        while batch is not None:
            yield batch
            batch = _take(iterator, name, workers)


def report_notes(name: str, notes: Sequence[Issue]) -> None:
    """Logs a line for each kind of note."""
    groups = {group[0].kind: group for group in group_issues(notes)}
    scales = groups.keys() & {*SCALED}
    # Scores of images that were scaled differently are not comparable.
    doubtful = {*DOUBTFUL, *(scales if len(scales) > 1 else ())}
    for kind, group in groups.items():
        level = logging.WARNING if kind in doubtful else logging.INFO
        logging.log(level, "%s: %s", name, summarize_issues(group))


def _release_shared_memory() -> None:
    """Frees the shared memory of the batches, which Python would report as leaked when the process ends.

    Grain's finished threads keep the last batch in a reference cycle. One thread frees the memory of discarded
    batches one by one: a task given to it ends after those before it.
    """
    gc.collect()
    module = sys.modules.get("grain._src.python.ipc.shared_memory_array")
    pool = getattr(getattr(module, "SharedMemoryArray", None), "_del_thread_pool", None)
    if pool is not None:
        pool.apply_async(int).wait(5)  # without end if Python is about to end


def _take(iterator: Iterator[ImageBatch], name: str, workers: int) -> ImageBatch | None:
    """Returns the next batch, copied out of the shared memory of the workers (small in containers)."""
    try:
        batch = next(iterator, None)
    # Grain raises it if a worker is lost; decoding itself reports errors as issues.
    except RuntimeError as error:
        if not workers:
            raise
        raise UserError(
            f"A process that decodes images of {name} was killed or ran out of memory. Run the same command"
            " again to resume, or add --config.num_workers=0 to decode in this process."
        ) from error
    if batch is None:
        return None
    fields = (np.array(one) if isinstance(one, np.ndarray) else one for one in batch)
    return ImageBatch._make(fields)


# An index and its sample, the issue of a damaged record, or None for padding.
_Item = tuple[int, Sample | Issue | None]
# From the position in a selection to the item of a row, or the four of a mosaic.
_Read = Callable[[int], list[_Item]]


@dataclasses.dataclass(frozen=True)
class _Selection:
    dataset: Dataset
    order: np.ndarray

    def read(self, position: int) -> list[_Item]:
        first, *others = np.atleast_1d(self.order[position]).tolist()
        indices = [first, *(index for index in others if index >= 0)]
        return [(i, None if i < 0 else read_sample(self.dataset, i)) for i in indices]


# Read once per process: every sample of a worker asks for it.
@functools.lru_cache(maxsize=1)
def _load_selection(path: str) -> _Selection:
    with open(path, "rb") as file:
        return pickle.load(file)


def _read_from_file(path: str, position: int) -> list[_Item]:
    return _load_selection(path).read(position)


@contextlib.contextmanager
def _in_file(selection: _Selection) -> Iterator[_Read]:
    """Writes a selection to a temporary file, and yields a small function that reads a sample of it.

    The arguments of a process are sent through a pipe. If the process is killed before it reads them, writing
    more than the pipe holds (64 KiB) blocks forever.
    """
    import cloudpickle  # pickles classes of a user's script by value

    for left in pathlib.Path(tempfile.gettempdir()).glob(f"{SELECTION}*"):
        # Of a killed run, if no process has locked it; those of other users cannot be opened.
        with contextlib.suppress(OSError), open(left, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.tell():  # else it was made at this moment
                left.unlink()
    with tempfile.NamedTemporaryFile(prefix=SELECTION) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cloudpickle.dump(selection, file)
        file.flush()
        yield functools.partial(_read_from_file, file.name)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The steps from a sample to a row, and from rows to a batch of constant size."""

    preprocess: Preprocess
    mask_threshold: int
    batch_size: int
    categories: tuple[str, ...]

    def decode(self, items: list[_Item]) -> Row:
        """Returns the row of a sample, or the mosaic of four."""
        if len(items) == 1:
            return self._decode_one(*items[0])
        side = -(-self.preprocess.image_size // 2)
        half = dataclasses.replace(
            self, preprocess=dataclasses.replace(self.preprocess, image_size=side)
        )
        rows = [half._decode_one(*item) for item in items]
        images = [row.image for row in rows]
        masks = [np.zeros((side, side), bool) if row.mask is None else row.mask for row in rows]
        samples = [row.sample for row in rows]
        known = all(sample.has_mask or not sample.label for sample in samples)
        label = max(sample.label for sample in samples)
        whole = dataclasses.replace(samples[0], label=label, has_mask=known)
        issues = tuple(itertools.chain(*(row.issues for row in rows)))
        image = None if any(one is None for one in images) else self._tile(images)
        return Row(rows[0].position, whole, image, self._tile(masks), issues)

    def _tile(self, parts: Sequence[Any]) -> np.ndarray:
        """Returns a square of four parts, which overlap by a pixel if its side is odd."""
        size, side = self.preprocess.image_size, len(parts[0])
        whole = np.zeros((size, size, *parts[0].shape[2:]), parts[0].dtype)
        for i, part in enumerate(parts):
            row, column = (half * (size - side) for half in divmod(i, 2))
            whole[row : row + side, column : column + side] = part
        return whole

    def _decode_one(self, index: int, sample: Sample | Issue | None) -> Row:
        if sample is None:
            return Row(index, Sample(image=b""))
        if isinstance(sample, Issue):
            return Row(index, Sample(image=b"", file_name=sample.file), issues=(sample,))
        if not sample.file_name:
            name = sample.image if isinstance(sample.image, str) else f"#{index}"
            sample = dataclasses.replace(sample, file_name=name)
        try:
            with one_large_image(sample.image, *sample.masks):
                return self._decode(index, sample)
        except Exception as error:  # one file must not end the run, whatever a decoder raises
            issue = Issue("image_unreadable", sample.file_name, f"{type(error).__name__}: {error}")
            return Row(index, sample, issues=(issue,))

    def _decode(self, index: int, sample: Sample) -> Row:
        bit_depth = self.preprocess.bit_depth
        # The same checks as in preparation and `verify`, so that all three report the same issues.
        found = examine(sample, threshold=self.mask_threshold, bit_depth=bit_depth)
        issues, notes = tuple(found.issues), tuple(found.notes)
        if found.image is None:
            return Row(index, sample, None, None, issues, notes)
        image = resize_image(found.image, self.preprocess)
        aspect = found.image.width / found.image.height
        if found.mask is not None:
            # Doubtful masks are used like in the published loaders, so their issues are only notes.
            mask = resize_mask(found.mask, self.preprocess.image_size)
            return Row(index, sample, image, mask, notes=issues + notes, aspect=aspect)
        if sample.mask is not None:
            sample = dataclasses.replace(sample, has_mask=False)
        return Row(index, sample, image, None, issues, notes, aspect)

    def collate(self, rows: Sequence[Row]) -> ImageBatch:
        b, size = self.batch_size, self.preprocess.image_size
        rows = [*rows, *[self._decode_one(-1, None)] * (b - len(rows))]
        # Eight bits a channel: float32 would take four times the memory and the transfer to the device.
        images = np.zeros((b, size, size, 3), np.uint8)
        batch = ImageBatch(
            images=images,
            masks=np.zeros((b, size, size), np.bool_),
            has_mask=np.zeros(b, np.bool_),
            labels=np.zeros(b, np.int32),
            category=np.zeros(b, np.int32),
            index=np.array([row.position for row in rows], np.int32),
            valid=np.array([row.image is not None for row in rows]),
            aspect=np.array([row.aspect for row in rows]),
            file_names=tuple(row.sample.file_name for row in rows),
            issues=tuple(row.issues for row in rows),
            notes=tuple(row.notes for row in rows),
        )
        for i, row in enumerate(rows):
            if row.image is None:  # the row stays, so that positions and batch shapes do not change
                continue
            batch.labels[i] = row.sample.label
            batch.category[i] = self.categories.index(row.sample.category)
            images[i] = row.image
            batch.has_mask[i] = row.sample.has_mask
            batch.masks[i] = False if row.mask is None else row.mask
        return batch


def _choose_workers(wanted: int | None, num_images: int, num_batches: int, batch_bytes: int) -> int:
    if wanted is None:
        cores = num_cores()
        # On one core, processes cannot decode in parallel and would only take time to start.
        use_workers = cores > 1 and num_images >= MIN_IMAGES_FOR_WORKERS
        wanted = min(cores, MAX_WORKERS) if use_workers else 0
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
    """Lets grain read its command-line flags if none were parsed: in notebooks, scripts and tests."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = 1


def _prepare_worker(index: int, count: int) -> None:
    """Prepares a worker process, which ends when its parent is killed."""
    import multiprocessing

    set_up_decoders()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            # sys.exit would end this thread alone.
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    """Keeps worker processes from importing the main script again, and from ending at Ctrl-C.

    They do not need the script (functions are pickled by value), a script without an
    `if __name__ == "__main__"` guard would run again in each of them, and the import takes time.
    """
    main = sys.modules["__main__"]
    resource_tracker.ensure_running()  # it would reset what is blocked
    # Of two loaders that start at once, the second would save the changes of the first as the original.
    with _start_lock:
        saved = {
            name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)
        }
        # From these two attributes multiprocessing learns which script to import.
        main.__spec__ = None
        # Processes inherit it; threads that exist still take the signal for this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        main.__dict__.pop("__file__", None)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            main.__dict__.update(saved)
