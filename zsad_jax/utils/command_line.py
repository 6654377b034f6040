"""Shared parts of the commands: log output, errors and exit codes."""

import argparse
import io
import logging as python_logging
import os
import pathlib
import select
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import logging

from zsad_jax.utils import files, interrupts
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.images import set_up_decoders


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s, with a suggestion for a wrong choice."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = suggest(str(value), map(str, action.choices))
            raise UserError(f"{value!r} is not a valid {action.dest}. {hint}")


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
    """Runs a command and returns its exit code: 130 after Ctrl-C, 143 after SIGTERM, 141 for a closed pipe."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by what has started the command, such as a service
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # terminals and logs need not be UTF-8
    try:
        try:
            return _report_errors(run)
        finally:
            sys.stdout.flush()  # not at exit, where a closed pipe would be a traceback
    except BrokenPipeError:
        closed = select.poll()
        closed.register(sys.stdout, 0)
        if not closed.poll(0):
            raise  # another pipe is broken
        # The reader of the output has ended, such as `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _report_errors(run: Callable[[], int | None]) -> int:
    with interrupts.handled():
        try:
            try:
                interrupts.check()
                return run() or 0
            finally:
                interrupts.check()  # a signal may have been swallowed, or have caused an error
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            return interrupts.exit_code()
        except Exception as error:
            path = getattr(error, "filename", None)
            if files.is_disk_full(error):
                disk = f"The disk of {path}" if path else "The disk"
                fail(f"{disk} is full. Make room, or choose a folder on a larger disk.")
            if not isinstance(error, OSError) or path is None:
                raise  # ours, with its traceback; the user can correct errors of the system with a path
            fail(f"{path}: {error.strerror}. Check its permissions, or choose another folder.")


def run_parsed(
    make_parser: Callable[[], argparse.ArgumentParser], arguments: Sequence[str] | None
) -> int:
    """Parses arguments, runs the function that they have as `run`, and returns the exit code."""

    def body() -> int | None:
        options = make_parser().parse_args(arguments)
        log_plainly()
        return options.run(options)

    return guarded(body)


def log_plainly() -> None:
    """Sends our log messages to stderr without prefixes; from libraries only errors, and no Python warnings."""
    handler = python_logging.StreamHandler(sys.stderr)
    ours = str(pathlib.Path(__file__).parents[1])
    error = python_logging.ERROR
    handler.addFilter(lambda one: one.pathname.startswith(ours) or one.levelno >= error)
    logger = logging.get_absl_logger()
    logger.handlers = python_logging.getLogger().handlers = [handler]
    logger.propagate = False
    logging.set_verbosity(logging.INFO)
    python_logging.getLogger("jax").setLevel(error)  # it has its own way to stderr
    if not sys.warnoptions:  # else asked for by -W or PYTHONWARNINGS
        warnings.simplefilter("ignore")
    set_up_decoders()
