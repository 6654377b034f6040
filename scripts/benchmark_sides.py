"""Implementations under comparison, each in its own process."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

# Worker threads may spin for a while after their work; the pause lets them stop before the next run.
PAUSE_S = 0.3


class Turn(NamedTuple):
    """The result of a call, its wall time in seconds, and its CPU time over all threads."""

    seconds: float
    processor: float
    value: Any


class Side:
    """An implementation in its own process, so that its memory is measured separately.

    Args:
      make: called in the process with `arguments`; returns the object whose methods are timed.
      cores: the cores that the process may use.
      *arguments: passed to `make`.
    """

    def __init__(self, make: Callable[..., Any], cores: list[int], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, make, cores, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def time(self, what: str, *arguments: Any) -> Turn:
        """Times one call of a method, whose value must be picklable."""
        time.sleep(PAUSE_S)
        self._pipe.send((what, arguments))
        return self._pipe.recv()

    def peak_gib(self) -> float:
        """Returns the peak resident memory of the process in GiB, including loading."""
        self._pipe.send(("", ()))
        return self._pipe.recv()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


def serve(
    pipe: Connection, make: Callable[..., Any], cores: list[int], arguments: tuple[Any, ...]
) -> None:
    """Creates the implementation, then times calls until the pipe is closed."""
    os.sched_setaffinity(0, cores)  # before any thread pool is created
    made = make(*arguments)
    pipe.send("ready")
    while True:
        try:
            what, given = pipe.recv()
        except EOFError:
            return
        if not what:
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
            continue
        start, processor_start = time.perf_counter(), time.process_time()
        value = getattr(made, what)(*given)
        seconds = time.perf_counter() - start
        pipe.send(Turn(seconds, time.process_time() - processor_start, value))
