"""The memory of this process and of the machine."""

import contextlib
import os
import pathlib
import re
import resource
import sys

# The limits of a container, in version 2 of control groups.
CONTAINER = pathlib.Path("/sys/fs/cgroup")


def peak_memory() -> int:
    """Returns the largest memory that this process has taken so far, in bytes."""
    # `ru_maxrss` also counts what the parent had when it started this process.
    with contextlib.suppress(OSError, TypeError):
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) << 10  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, but on macOS in bytes.
    return peak if sys.platform == "darwin" else peak << 10


def available_memory() -> int:
    """Returns the memory that this process can still take on the machine or in its container, in bytes."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # such as on macOS
    with contextlib.suppress(OSError):
        status = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8")
        free = int(status.partition("MemAvailable:")[2].split()[0]) << 10
    with contextlib.suppress(OSError, ValueError, LookupError):  # the limit can be "max"
        names = "max", "current", "stat"
        limit, used, numbers = ((CONTAINER / f"memory.{x}").read_text() for x in names)
        # Files that were read count as used, until their memory is needed.
        cached = numbers.partition("inactive_file ")[2].split()[0]
        free = min(free, max(int(limit) - int(used) + int(cached), 0))
    return free
