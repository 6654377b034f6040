"""Shared parts of the commands: log output, errors and exit codes."""

import argparse
import logging as python_logging
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import logging

from zsad_jax.utils import files
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
    """Runs the body of a command and returns its exit code."""
    try:
        return run() or 0
    except UserError as error:
        fail(str(error))
    except OSError as error:
        # Errors of the system with a path are the user's to correct; others are ours and keep their traceback.
        full = files.is_disk_full(error)
        if error.filename is None and full:
            fail("The disk is full. Make room, or choose a folder on a larger one.")
        if error.filename is None:
            raise
        remedy = "Make room" if full else "Check the path and its permissions"
        fail(f"{error.filename}: {error.strerror}. {remedy}, or choose another folder.")
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to resume.", file=sys.stderr)
        return 130


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
