"""Which benchmarks are prepared, and how to get the others."""

import os
import pathlib
import shlex

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError

VERSION = "1.0.0"  # of the records


def names() -> list[str]:
    """Returns the keys of all benchmarks."""
    return sorted(name for name, facts in DATASETS.items() if facts.archives)


def check_known(name: str) -> None:
    """Rejects what is not the key of a benchmark.

    Raises:
      UserError: unknown name.
    """
    if name not in names():
        raise UserError(f"{name!r} is not a dataset; known are {', '.join(names())}.")


def default_data_dir() -> pathlib.Path:
    """Returns the folder of prepared datasets unless the user names another."""
    return files.home() / "data"


def find_place(name: str, data_dir: files.PathLike) -> pathlib.Path:
    """Returns the folder of the records of a benchmark."""
    return pathlib.Path(data_dir, name, VERSION)


def is_prepared(name: str, data_dir: files.PathLike) -> bool:
    """Returns whether a benchmark has been written completely: its description is the last file."""
    return name in DATASETS and (find_place(name, data_dir) / "dataset_info.json").is_file()


def make_command(words: str, data_dir: files.PathLike) -> str:
    """Returns a command of `python -m zsad_jax.data` for a folder of prepared benchmarks."""
    command = f"python -m zsad_jax.data {words}"
    if pathlib.Path(data_dir) == default_data_dir():
        return command
    return f"{command} --data_dir {shlex.quote(os.fspath(data_dir))}"


def how_to_prepare(name: str, data_dir: files.PathLike) -> str:
    """Says how to get a benchmark, with the exact command.

    Raises:
      UserError: unknown name.
    """
    check_known(name)
    facts = DATASETS[name]
    command = make_command(f"prepare {name}", data_dir)
    what = " and ".join(f"{archive.file_name} ({archive.about})" for archive in facts.archives)
    missing = f"{facts.title} is not prepared in {data_dir};"
    if facts.open_to_all:
        return f"{missing} this fetches {what}, {facts.licence}, and prepares it: {command}"
    return (
        f"{missing} get {what} from {facts.homepage} ({facts.licence}; {facts.terms}),"
        f" {f'unpack with {facts.unpack}, ' if facts.unpack else ''}then: {command} --source PATH (of"
        " the archive or its extracted folder)"
    )
