"""The memory of this process and of the machine."""

import contextlib
import pathlib
import re
import resource
import sys


def peak_memory() -> int:
    """Returns the largest memory that this process has taken so far, in bytes."""
    # `ru_maxrss` also counts what the parent had when it started this process.
    with contextlib.suppress(OSError, TypeError):
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) << 10  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, but on macOS in bytes.
    return peak if sys.platform == "darwin" else peak << 10
