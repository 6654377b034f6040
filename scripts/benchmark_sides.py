"""Implementations under comparison, each in its own process."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from zsad_jax.utils.text_table import TextTable

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


def compare_times(times: Mapping[str, tuple[float, float]], **fields: Any) -> list[dict[str, Any]]:
    """Returns a row for each side: its wall and processor time, and their ratios to those of the last side.

    Args:
      times: (wall time, processor time) in seconds, by side.
      **fields: the first columns.
    """
    *_, last = times.values()
    return [
        {
            **fields,
            "side": side,
            "seconds": found[0],
            "processor": found[1],
            "seconds_ratio": found[0] / last[0],
            "processor_ratio": found[1] / last[1],
            "load": os.getloadavg()[0],
        }
        for side, found in times.items()
    ]


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of rows with the same keys; numbers have two decimals."""
    cells = [tuple(x if isinstance(x, str) else f"{x:.2f}" for x in row.values()) for row in rows]
    return TextTable(tuple(rows[0]), frozenset(), cells).to_text("markdown")
