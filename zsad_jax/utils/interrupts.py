"""Ctrl-C and SIGTERM in commands.

An exception at any place may be swallowed by a library, or end in a traceback of its own. The first signal is
therefore only noted, and `check` raises it between two batches. The second ends the process at once: files
are written atomically, so that a killed run can be resumed, too.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = "Interrupted. Run the same command again to resume."

_noted: list[int] = []


def install() -> None:
    """Installs the handler for the rest of the process; ignored signals stay ignored (nohup).

    Only for the main thread of a command: scripts and notebooks keep Python's handlers.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Installs the handler for the duration of a command; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _noted.clear()


def check() -> None:
    """Raises KeyboardInterrupt if a signal was noted."""
    if _noted:
        raise KeyboardInterrupt


def exit_code() -> int:
    """Returns the exit code after a KeyboardInterrupt: 128 and the number of the signal."""
    return 128 + (_noted[0] if _noted else signal.SIGINT)


def _note(number: int, frame: FrameType | None) -> None:
    del frame
    if _noted:
        os._exit(exit_code())
    _noted.append(number)
    with contextlib.suppress(OSError):  # of a closed terminal
        # Not `print`, which may be what the signal has interrupted.
        os.write(2, ("\n" * sys.stderr.isatty() + MESSAGE + "\n").encode())
