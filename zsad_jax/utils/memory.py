"""The memory of this process and of the machine."""

import contextlib
import os
import pathlib
import re
import resource
import sys

CONTAINER = pathlib.Path(
    "/sys/fs/cgroup"
)  # the limits of a container, in version 2 of control groups


def peak_memory() -> int:
    """Returns the largest memory that this process has taken so far, in bytes."""
    # `ru_maxrss` also counts what the parent had when it started this process.
    with contextlib.suppress(OSError, TypeError):
        return _read_bytes(pathlib.Path("/proc/self/status"), "VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, but on macOS in bytes.
    return peak if sys.platform == "darwin" else peak << 10


def available_memory() -> int:
    """Returns the memory that this process can still take on the machine or in its container, in bytes."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # such as on macOS
    with contextlib.suppress(OSError, TypeError):
        free = _read_bytes(pathlib.Path("/proc/meminfo"), "MemAvailable")
    with contextlib.suppress(OSError, TypeError):  # the limit can be "max"
        limit, used = (_read_bytes(CONTAINER / f"memory.{name}") for name in ("max", "current"))
        # Files that were read count as used, until another use needs their memory.
        cached = _read_bytes(CONTAINER / "memory.stat", "inactive_file")
        free = min(free, max(limit - used + cached, 0))
    return free


def _read_bytes(path: pathlib.Path, name: str = "") -> int:
    """Returns the number of a line; raises `TypeError` if there is none."""
    found = re.search(rf"^{name}:?\s*(\d+)( kB)?$", path.read_text(), re.MULTILINE)
    return int(found[1]) << (10 if found[2] else 0)  # type: ignore[index]
