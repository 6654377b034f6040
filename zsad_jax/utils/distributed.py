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
import socket
import sys
import tempfile
import threading
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from absl import logging

from zsad_jax.utils import files, interrupts
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.memory import available_memory

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

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
            initialization_timeout=120,
            heartbeat_timeout_seconds=20,  # until a machine that sends nothing is lost
            shutdown_timeout_seconds=24 * 3600,  # the others wait for the report of process 0
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

    return _exchange(value, process_allgather)


def once(make: Callable[[], T]) -> T:
    """Returns what `make` returns in process 0, in every process. Its exceptions end the others, too."""
    if not jax.distributed.is_initialized():
        return make()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    (value,) = _exchange(make() if is_main() else None, broadcast_one_to_all)
    return value


def _exchange(value: Any, send: Callable[[np.ndarray], Any]) -> list[Any]:
    """Returns the values that `send`, which needs arrays of equal shape in all processes, yields."""
    data = zlib.compress(pickle.dumps(value), 1)  # histograms are nearly empty
    size = int(np.max(send(np.array(len(data)))))
    # Powers of two, since each size is compiled.
    padded = np.frombuffer(data.ljust(1 << size.bit_length(), b"\0"), np.uint8)
    return [pickle.loads(zlib.decompress(row)) for row in np.atleast_2d(send(padded))]


def memory_share() -> float:
    """Returns the memory that each process can take, in bytes, if all take the same."""
    found = gather((socket.gethostname(), available_memory()))
    processes = Counter(host for host, _ in found)
    return min(free / processes[host] for host, free in found)


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
    wrapped = functools.wraps(function)(lambda *x, **options: once(lambda: function(*x, **options)))
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
        if of_jax and any(word in str(error) for word in _OF_CONNECTIONS):
            _end_lost(f"Reason: {str(error).splitlines()[0]}")
        traceback.print_exc()
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


_lock = threading.Lock()


def _end_lost(reason: str) -> None:
    _lock.acquire()  # never released: only one thread reports it
    try:
        interrupts.check()
    except KeyboardInterrupt:  # all processes were interrupted, and another one has ended first
        os._exit(interrupts.exit_code())
    os.write(2, f"{LOST} {reason}\n".encode())
    os._exit(1)


# In a thread of JAX, which ends the process by abort() when another one is lost and has no other hook. Python's
# own handlers would run in the main thread, after the end.
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(
    lambda _: _end_lost("JAX has aborted this process; the lines above have the reason.")
)
