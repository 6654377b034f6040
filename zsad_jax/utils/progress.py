"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from absl import logging

from zsad_jax.utils import interrupts
from zsad_jax.utils.errors import plural

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def one_late(items: Iterable[T]) -> Iterator[T]:
    """Yields each item when the next one has been started.

    JAX returns before its arrays are computed, so the device works on an item while the host uses the last one.
    """
    pending: list[T] = []
    for item in items:
        yield from pending
        pending = [item]
    yield from pending


class DeviceClock:
    """The seconds in which devices `waited` for the host, of the `total` from first starts to last ends."""

    waited = total = 0.0

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yields trees of arrays whose computation has just been started."""
        import jax

        since = 0.0

        def note(start: float, item: T) -> None:
            nonlocal since
            jax.block_until_ready(item)
            since, end = since or start, time.monotonic()
            self.waited += max(start - since, 0.0)
            self.total += end - since
            since = end

        with ThreadPoolExecutor(1) as watcher:
            for item in items:
                watcher.submit(note, time.monotonic(), item)
                yield item


def progress(
    items: Iterable[T], *, total: int, label: str, unit: str = "image", step: int = 1
) -> Iterator[T]:
    """Yields `items` and shows the rate and the time left, under the name `label`; stops after a signal.

    There are `total` units in all, `step` of them per item, such as the batch size. Raises `KeyboardInterrupt`
    after a signal, see `interrupts`.
    """
    # Other processes than the first log only errors.
    if sys.stderr.isatty() and logging.level_info():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit=f" {unit}", dynamic_ncols=True) as bar:
            for item in _until_interrupted(items):
                yield item
                # The last batch may be smaller than the others.
                bar.update(min(step, total - bar.n))
        return
    start = shown = time.monotonic()
    done = 0
    for item in _until_interrupted(items):
        yield item
        done = min(done + step, total)
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES or done == total:
            rate = done / max(now - start, 1e-9)
            values = (label, done, plural(total, unit), rate, (total - done) / (rate or 1))
            logging.info("%s: %d of %s, %.1f/s, %.0f s left", *values)
            shown = now


def _until_interrupted(items: Iterable[T]) -> Iterator[T]:
    for item in items:
        try:
            interrupts.check()
        except KeyboardInterrupt:
            # Now, since loading processes cannot be stopped any more while Python ends.
            getattr(items, "close", lambda: None)()
            raise
        yield item
