"""How every command ends: a mistake of the user's in one sentence and exit code 2, never a traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn

from zsad_jax.errors import UserError


def fail(message: str) -> NoReturn:
    """Prints the sentence and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def guarded(run: Callable[[], int | None]) -> int:
    """Runs a command's body; returns its exit code."""
    try:
        return run() or 0
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
