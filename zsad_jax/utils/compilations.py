"""Compiled programs on disk, so that the next run of a command does not compile again."""

import contextlib
import os

import jax

from zsad_jax.utils import files

MAX_BYTES = 2 * 10**9
SHORTEST_S = 0.1  # programs that compile faster are not worth a file each


def store() -> None:
    """Stores compiled programs in the cache directory, unless the user's settings of JAX name another one.

    Beyond `MAX_BYTES`, the least recently used are removed. A damaged program is compiled again.
    """
    folder = files.home() / "xla"
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    # With a directory that cannot be written to, compilation for GPUs fails.
    if chosen is not None or not os.access(nearest, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_S)
    # Not by JAX, whose limit needs another package and fails for good after a kill at the wrong moment.
    with contextlib.suppress(OSError):  # other processes may remove programs, too
        total = 0
        for path in sorted(folder.glob("*-cache"), key=lambda path: -path.stat().st_atime):
            total += path.stat().st_size
            if total > MAX_BYTES:
                path.unlink()
