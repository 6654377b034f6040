"""Runner of fuzz cases: a time limit for each, a table of the outcomes by kind, and the peak memory.

A script of this folder draws its cases from a seed and returns what `run_cases` returns as its exit code.
"""

import argparse
import collections
import contextlib
import faulthandler
import io
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from zsad_jax.utils.errors import UserError, plural
from zsad_jax.utils.memory import peak_memory
from zsad_jax.utils.text_table import TextTable

OUTCOMES = ("accepted", "rejected", "wrong", "traceback", "hang")
FAULTS = ("wrong", "traceback", "hang")


class Case(NamedTuple):
    """A fuzzed input.

    Attributes:
      kind: its row in the table ("npz: flipped bits").
      name: identifies it in the list of faults ("seed 0, case 17").
      act: gives the input to the library. Returning (or `SystemExit` of 0) counts as accepted, `UserError` (or
        exit code 2) as rejected, `WrongError` as wrong, and any other exception as a traceback.
    """

    kind: str
    name: str
    act: Callable[[], object]


def make_parser(description: str, count: int, what: str) -> argparse.ArgumentParser:
    """Returns the command line that the scripts share."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--count", type=int, default=count, help=f"number of {what}")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    return parser


def damage(
    rng: np.random.Generator, data: bytes, kind: str, *, flips: int, end: int | None = None
) -> bytearray:
    """Damages bytes at random; `flips` and `end` bound the number and the places of flipped bits.

    The kinds are "flip", "cut", "drop", "insert", "text" and "empty"; of any other, nothing is changed.
    """
    changed = bytearray(data)
    at = int(rng.integers(len(data)))
    match kind:
        case "flip":
            for position in rng.integers(0, end or len(data), rng.integers(1, flips)):
                changed[position] ^= 1 << int(rng.integers(8))
        case "cut":
            del changed[at:]
        case "drop":
            del changed[at : at + int(rng.integers(1, 64))]
        case "insert":
            changed[at:at] = rng.bytes(int(rng.integers(1, 64)))
        case "text":
            changed[:] = b"<html>not found</html>"
        case "empty":
            changed.clear()
    return changed


class WrongError(Exception):
    """A result that must not occur: executed code, accepted damage, a file outside its folder."""


class _TimeoutError(BaseException):
    """The time limit; no `except Exception` of the library stops it."""


def run_cases(cases: Iterable[Case], *, seconds: float = 20, memory_mib: int = 2048) -> int:
    """Runs cases in this process and prints a table and the faults.

    Args:
      cases: may be drawn lazily.
      seconds: time limit of a case. A case that cannot be interrupted ends the process with its stack after
        three times as long.
      memory_mib: limit of the peak memory of this process, or of a child if that is larger.

    Returns:
      0, or 1 if there is any fault.
    """
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults = []
    for case in cases:
        with _silence():
            outcome, details = _run(case.act, seconds)
        counts[case.kind][outcome] += 1
        if outcome in FAULTS:
            faults.append(f"{outcome}: {case.kind}, {case.name}\n{details}")
    totals = sum(counts.values(), collections.Counter())
    rows = [
        (kind, found.total(), *(found[outcome] for outcome in OUTCOMES))
        for kind, found in [*sorted(counts.items()), ("total", totals)]
    ]
    print(TextTable(("kind", "cases", *OUTCOMES), frozenset(), rows).to_text("plain"))
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    peak = max(peak_memory(), of_children) >> 20
    if peak > memory_mib:
        faults.append(f"memory: the peak of {peak} MiB is above {memory_mib} MiB")
    print(*faults, sep="\n", end="\n" * bool(faults))
    print(
        f"{plural(totals.total(), 'case')}, {plural(len(faults), 'fault')}, peak memory {peak} MiB"
    )
    return int(bool(faults))


def _run(act: Callable[[], object], seconds: float) -> tuple[str, str]:
    """Returns the outcome of a case, and its details."""

    def stop(*_: object) -> None:
        raise _TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
    try:
        # Repeated, since an exception that is raised in a destructor or a callback is lost.
        signal.setitimer(signal.ITIMER_REAL, seconds, 1)
        try:
            act()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return "accepted", ""
    except _TimeoutError:
        return "hang", traceback.format_exc()
    except UserError as error:
        return "rejected", str(error)
    except WrongError as error:
        return "wrong", str(error)
    except SystemExit as error:
        outcome = {None: "accepted", 0: "accepted", 2: "rejected"}.get(error.code, "traceback")
        return outcome, f"exit code {error.code}"
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
