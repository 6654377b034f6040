"""Parallel work that waits for files or for C code."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], *, num_workers: int
) -> Iterator[R]:
    """Applies a function to items in threads, in order, at most a few items ahead."""
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: collections.deque[Future[R]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            # A bound, since results that are not used yet stay in memory.
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
