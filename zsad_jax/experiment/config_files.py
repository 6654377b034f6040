"""The config files that are part of the package, which commands find from any directory."""

import pathlib
import runpy
import traceback

from ml_collections import ConfigDict

from zsad_jax.experiment.config_keys import flatten
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.files import user_path

FOLDER = "configs"
LIST_COMMAND = "python -m zsad_jax.main --list"


def included() -> dict[str, pathlib.Path]:
    """Returns the included files by name, for example `configs/protocols/tps.py`."""
    package = pathlib.Path(__file__).parents[1]
    # An installed package has its own copy; in a source tree the folder is next to the package.
    folders = [place / FOLDER for place in (package, package.parent)]
    folder = next(folder for folder in folders if folder.is_dir())
    paths = [*sorted(folder.glob("*.py")), *sorted(folder.glob("*/*.py"))]
    return {f"{FOLDER}/{path.relative_to(folder).as_posix()}": path for path in paths}


def find_config(named: str) -> str:
    """Returns the path of FILE or FILE:VARIANT: a local file, else an included one; else raises `UserError`."""
    file, colon, variant = user_path(named, "The config").partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        known = included()
        if path.as_posix() not in known:
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(
                f"The config file {file!r} {problem}. {suggest(file, known)} To list all: {LIST_COMMAND}"
            )
        path = known[path.as_posix()]
    return f"{path}{colon}{variant}"


def load_config(named: str) -> ConfigDict:
    """Returns the config of FILE or FILE:VARIANT.

    Raises:
      UserError: there is no such file, running it raises an error, or it returns no config.
    """
    path, colon, variant = find_config(named).partition(":")
    try:
        # Run by path: a config is a file of its own, not a module of a package.
        config = runpy.run_path(path)["get_config"](*[variant] * len(colon))
        if config is None:
            raise UserError(f"get_config of {named} returns None. Return the config.")
        flatten(config)  # fails if it is anything else
        return config
    except UserError:
        raise
    except Exception as error:  # a config file is a program, which may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [one.lineno for one in frames if one.filename == path]
        place = f", line {lines[-1]}" if lines else ""
        remedy = "Correct the config file."
        if isinstance(error, ModuleNotFoundError):
            remedy = "Correct the import, or add the module's folder to PYTHONPATH."
        raise UserError(
            f"Cannot load {named}{place} ({type(error).__name__}: {error}). {remedy}"
        ) from error


def describe_configs() -> dict[str, str]:
    """Returns a line about each included config and variant (`configs/tps.py:demo`)."""
    return {
        f"{name}{':' * bool(variant)}{variant}": line
        for name, path in included().items()
        for variant, line in runpy.run_path(str(path))["VARIANTS"].items()
    }
