"""Shared parts of the commands: log output, errors and exit codes."""

import argparse
import logging as python_logging
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import logging

from zsad_jax.utils import files, interrupts
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.images import set_up_decoders


def add_command(commands: Any, name: str, words: str, **options: Any) -> argparse.ArgumentParser:
    """Adds a subcommand; `words` are its line in the list of commands and, as a sentence, its description."""
    options = {"description": f"{words[:1].upper()}{words[1:]}.", **options}
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, **options)
    return parser


def fail(message: str) -> NoReturn:
    """Prints an error and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def guarded(run: Callable[[], int | None]) -> int:
    """Runs the body of a command and returns its exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    with interrupts.handled():
        try:
            interrupts.check()
            code = run() or 0
            interrupts.check()
            return code
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            return interrupts.exit_code()
        except Exception as error:
            # Errors of the system with a path are the user's to correct; others are ours and keep their
            # traceback.
            path = getattr(error, "filename", None)
            if files.is_disk_full(error):
                disk = f"The disk of {path}" if path else "The disk"
                fail(f"{disk} is full. Make room, or choose a folder on a larger disk.")
            if not isinstance(error, OSError) or path is None:
                raise
            fail(
                f"{path}: {error.strerror}. Check the path and its permissions, or choose another folder."
            )


def log_plainly() -> None:
    """Sends log messages to stderr without prefixes; from libraries only warnings and errors."""
    handler = python_logging.StreamHandler(sys.stderr)
    ours = str(pathlib.Path(__file__).parents[1])
    handler.addFilter(
        lambda record: record.pathname.startswith(ours) or record.levelno >= python_logging.WARNING
    )
    logger = logging.get_absl_logger()
    logger.handlers = [handler]
    logger.propagate = False
    logging.set_verbosity(logging.INFO)
    set_up_decoders()
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # it has its own way to stderr
