"""Compiled programs on disk, so that the next run of a command does not compile again."""

import contextlib
import os

import jax

from zsad_jax.utils import files

MAX_BYTES = 2 * 10**9
SHORTEST_S = 0.1  # programs that compile faster are not worth a file each


def store() -> None:
    """Stores compiled programs in the cache directory, for commands, not on import of the library.

    Settings of the user, of which JAX reads `JAX_COMPILATION_CACHE_DIR` from the environment, have precedence.
    Least recently used programs are removed beyond `MAX_BYTES`. Nothing is stored if the directory cannot be
    written to; JAX compiles again what it cannot read.
    """
    folder = files.home() / "xla"
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    # With a directory that it cannot write to, compilation for GPUs fails.
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is not None or not os.access(nearest, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_S)
    _trim(folder)


def _trim(folder: files.PathLike) -> None:
    # JAX's own limit needs a further package, and a kill at the wrong moment disables it.
    with contextlib.suppress(OSError):  # another process may remove programs at the same time
        found = [(entry.stat(), entry.path) for entry in os.scandir(folder) if entry.is_file()]
        excess = sum(one.st_size for one, _ in found) - MAX_BYTES
        for one, path in sorted(found, key=lambda pair: max(pair[0].st_atime, pair[0].st_mtime)):
            if excess <= 0:
                break
            os.unlink(path)
            excess -= one.st_size
