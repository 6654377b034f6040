"""What the commands share: the flag --config, and how mistakes end: one sentence and exit code 2."""

import difflib
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from zsad_jax import files
from zsad_jax.errors import UserError
from zsad_jax.experiment import Experiment, from_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")


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
    except OSError as error:
        full = files.is_disk_full(error)
        if error.filename is None and full:
            fail("The disk is full: make room, or choose a folder on a larger one.")
        if error.filename is None:
            raise
        remedy = "make room" if full else "mend that"
        fail(f"{error.filename}: {error.strerror}; {remedy}, or choose another folder.")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130


def flags_parser(module: str) -> Callable[[list[str]], list[str]]:
    """absl's parsing for `app.run`, with the user's mistakes in one sentence.

    Args:
      module: the command's name, for pointing to its help.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            fail(f"{_flag_mistake(error)}; see python -m {module} --help.")
        except OSError as error:
            fail(_missing_config(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            fail(_config_mistake(argv, error))

    return parse


def read_experiment() -> Experiment:
    """The checked experiment of the flag --config and its overrides.

    Raises:
      UserError: no config was named, or it holds an unknown key or a bad value.
    """
    if _CONFIG.value is None:
        raise UserError(
            "Name a config: --config configs/tipsomaly.py, or configs/tipsomaly.py:demo."
        )
    try:
        return from_config(_CONFIG.value)
    except OSError as error:  # a file that cannot be loaded shows itself when it is first used
        raise UserError(_missing_config(error)) from error


def config_file() -> str:
    """What the flag --config names, with its variant."""
    return flags.FLAGS["config"].config_filename  # type: ignore[attr-defined]


def _flag_mistake(error: flags.Error) -> str:
    """What is wrong with a flag, of a traceback only its last line: what the config file says."""
    lines = str(error).strip().splitlines()
    return lines[-1].partition(": ")[2] if "Traceback" in str(error) else lines[0]


def _missing_config(error: OSError) -> str:
    reason = str(error).strip().splitlines()[-1].strip()
    return f"The config file cannot be loaded ({reason}); try --config configs/tipsomaly.py:demo."


def _config_mistake(argv: list[str], error: Exception) -> str:
    """One sentence on what is wrong with the config or its overrides."""
    keys = [arg[len("--config.") :].split("=")[0] for arg in argv if arg.startswith("--config.")]
    said = str(error).replace("\\", "")  # the text of a KeyError is quoted, once or twice
    missing = re.search(r"[\"'](\w+)[\"']", said)
    wrong = next((key for key in keys if missing and missing[1] in key.split(".")), None)
    if isinstance(error, AttributeError | KeyError) and wrong:
        known = [f"config.{name}" for name in Experiment.__dataclass_fields__]
        first = f"config.{wrong.split('.')[0]}"
        near = [] if first in known else difflib.get_close_matches(first, known, n=1)
        return f"config.{wrong} does not exist" + (f"; did you mean {near[0]}?" if near else ".")
    return f"The config cannot be read: {str(error).splitlines()[0]}."
