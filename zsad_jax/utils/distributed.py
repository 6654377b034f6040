"""Runs of several processes: their start, what they exchange on the host, and their end.

All processes run the same program. Process 0 decides what is reused, reports, and writes the results. In a
run of one process, `once` calls its function and `gather` returns a list of one.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import pathlib
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from absl import logging

from zsad_jax.utils import files, interrupts
from zsad_jax.utils.errors import UserError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# A lost process is noticed after this time at the latest, without a signal from its machine.
HEARTBEAT_SECONDS = 20
# At the end, process 0 may still write its report.
SHUTDOWN_SECONDS = 600
SCRATCH = "zsad_jax-process-"
LOST = (
    "error: Another process of this run has ended or cannot be reached; see its output for the reason. Start"
    " all processes again with the same command to resume."
)
# Words in errors of the libraries that connect processes (gloo, NCCL, gRPC).
_OF_CONNECTIONS = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Coordination")


def initialize() -> None:
    """Connects the processes of a run, before anything else uses JAX.

    JAX finds the others through Slurm, Open MPI, Kubernetes or the metadata of a TPU pod. Elsewhere the
    variables JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID name them.

    Raises:
      UserError: there is no such environment, or the other processes do not connect.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    # Its handler of SIGTERM would replace that of `interrupts`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        given: Any = {key: int(os.environ[x]) for key, x in names.items() if x in os.environ}
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"config.distributed is True, but this process cannot connect to others ({error}). Start it through"
            " Slurm, Open MPI or on a TPU pod, or set JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0),"
            " JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error
    if not is_main():
        logging.set_verbosity(logging.ERROR)


def is_main() -> bool:
    """Returns whether this is process 0, which reports and writes the results."""
    # The first, since the number would start the devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gather(value: T) -> list[T]:
    """Returns the values of all processes, in their order. Every process must call it."""
    if not jax.distributed.is_initialized():
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = process_allgather(np.array(len(data))).ravel()
    # Powers of two, since each size is compiled.
    room = 1 << int(sizes.max()).bit_length()
    found = process_allgather(np.pad(data, (0, room - len(data)))).reshape(len(sizes), room)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(found, sizes, strict=True)]


def once(make: Callable[[], T]) -> T:
    """Returns what `make` returns in process 0, in every process; its exceptions are raised in all, too."""
    if not jax.distributed.is_initialized():
        return make()
    outcome: Any = None, None
    if is_main():
        try:
            outcome = make(), None
        except Exception as error:
            outcome = None, error
    value, failure = gather(outcome)[0]
    if failure is not None:
        raise failure
    return value


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """Yields the path of a temporary folder; removes those of killed processes."""
    place = tempfile.gettempdir()
    with contextlib.ExitStack() as stack:
        # Locked, so that no other process finds the folder before it is locked.
        handle = os.open(place, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            for left in pathlib.Path(place).glob(f"{SCRATCH}*"):
                with contextlib.suppress(OSError, UserError), files.alone(left):
                    shutil.rmtree(left)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH))
            stack.enter_context(files.alone(folder))
        finally:
            os.close(handle)
        yield os.path.join(folder, "run")


def by_main(function: F) -> F:
    """Makes a function run by process 0 alone, see `once`."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        return once(lambda: function(*args, **options))

    return cast(F, wrapped)


def ended_together(run: Callable[[], Any]) -> Any:
    """Runs a command and returns its exit code; one of several processes ends at once after an error.

    Python's own end would wait for the others, which wait for this process in a computation.
    """
    code: Any = 1
    try:
        code = run()
    except SystemExit as ended:
        code = ended.code
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        of_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)  # the latter from gloo
        words = _OF_CONNECTIONS if of_jax else ()
        if any(word in str(error) for word in words):
            _end_lost()
        traceback.print_exc()
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


_lock = threading.Lock()


def _end_lost(*_: Any) -> None:
    _lock.acquire()  # never released: only one thread reports it
    try:
        interrupts.check()
    except KeyboardInterrupt:  # all processes were interrupted, and another one has ended first
        os._exit(interrupts.exit_code())
    os.write(2, f"{LOST}\n".encode())
    os._exit(1)


# In a thread of JAX, which ends the process by abort() when another one is lost and has no other hook. Python's
# own handlers would run in the main thread, after the end.
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end_lost)
