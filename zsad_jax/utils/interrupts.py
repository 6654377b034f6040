"""Ctrl-C and SIGTERM in commands.

An exception at any place may be swallowed by a library, or end in its traceback. The first signal is therefore
noted, and `check` raises it between two batches. A second signal, or ten seconds without a check, end the
process at once: files are written atomically, so that a killed run can be resumed, too.
"""

import _thread
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = "Interrupted. Run the same command again to resume."
SECONDS_LIMIT = 10.0

_noted: list[int] = []


def install() -> None:
    """Installs the handler until the process ends; signals that are ignored (nohup) remain so."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)
    atexit.register(_ignore)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles signals for the duration of a command's body; threads other than the main one cannot."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS if is_main}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, _note)}
    try:
        for number in before:
            signal.signal(number, _note)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        if before:  # after `install`, the exit code depends on them
            _noted.clear()


def check() -> None:
    """Raises KeyboardInterrupt if a signal was noted."""
    if _noted:
        raise KeyboardInterrupt


def exit_code() -> int:
    """Returns the exit code after a KeyboardInterrupt: 128 and the number of the signal."""
    return 128 + (_noted[0] if _noted else signal.SIGINT)


def _ignore() -> None:
    # Python's own end restores the default, although there is nothing left to interrupt.
    for number in () if _noted else SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, _: object) -> None:
    if _noted:
        os._exit(exit_code())
    _noted.append(number)
    # Neither `print` nor `threading`, whose locks the interrupted code may hold.
    with contextlib.suppress(OSError):
        os.write(2, ("\n" * sys.stderr.isatty() + MESSAGE + "\n").encode())
    _thread.start_new_thread(_end_late, ())


def _end_late() -> None:
    time.sleep(SECONDS_LIMIT)
    if _noted:
        os._exit(exit_code())
