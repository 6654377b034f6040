"""State of the benchmarks: which are prepared, and the commands that prepare the others."""

import os
import pathlib
import shlex

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.utils import files

VERSION = "1.0.0"  # of the records


def names() -> list[str]:
    """Returns the keys of all benchmarks."""
    return sorted(name for name, facts in DATASETS.items() if facts.archives)


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
    """Returns the message about a benchmark that is not prepared, with the command that prepares it."""
    facts = DATASETS[name]
    remote = os.fspath(data_dir).startswith(files.REMOTE)
    place = default_data_dir() if remote else data_dir
    command = make_command(f"prepare {name}", place)
    archives = " and ".join(f"{one.file_name} ({one.summary})" for one in facts.archives)
    missing = f"{facts.title} is not prepared in {data_dir}."
    if remote:
        missing += f" Prepare it in {place}, and copy the folder {name} with gcloud storage cp -r."
    if facts.open_to_all:
        return f"{missing} To download {archives} and prepare it ({facts.license}), run: {command}"
    unpack = f", unpack with {facts.unpack}" if facts.unpack else ""
    return (
        f"{missing} Get {archives} from {facts.homepage} ({facts.license}; {facts.terms}){unpack}, then run:"
        f" {command} --source PATH (of the archive or its extracted folder)"
    )
