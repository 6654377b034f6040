"""Working directories: each holds the results of one setting."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from zsad_jax.experiment.config import WITHOUT_EFFECT, Experiment, is_one_of, to_json
from zsad_jax.experiment.config_keys import flatten
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.records import parse_json


def default_workdir(config_path: str) -> pathlib.Path:
    """Returns runs/<config's name>[-<variant>]; the name includes folders below configs/."""
    file, _, variant = config_path.partition(":")
    path = pathlib.Path(file).with_suffix("")
    start = path.parts.index("configs") + 1 if "configs" in path.parts else -1
    return pathlib.Path("runs", "-".join([*path.parts[start:], *([variant] if variant else [])]))


def check_workdir(workdir: pathlib.Path, experiment: Experiment, shown: Any = None) -> None:
    """Raises `UserError` if a directory, `shown` in the message, has results of another setting."""
    config = workdir / "config.json"
    if not (workdir / "results.json").exists() or not config.exists():
        return
    now = flatten(to_json(experiment), Mapping)
    try:
        before = flatten(parse_json(config.read_bytes()), Mapping)
    except (AttributeError, ValueError):
        words, name = f"{config.name} cannot be read", "new"
    else:
        # Directories of earlier versions lack keys that were added since.
        defaults = {field.name: field.default for field in dataclasses.fields(Experiment)}
        different = [
            key
            for key in {**now, **before}
            if _given(before.get(key, defaults.get(key))) != _given(now.get(key))
            and not is_one_of(key, WITHOUT_EFFECT)
        ]
        if not different:
            return
        words = ", ".join(f"{key}: {before.get(key)}, now {now.get(key)}" for key in different[:3])
        section = different[0].partition(".")[0]
        # A section that has no entries any more is named itself.
        key = section if section in now else different[0]
        value = _given(now.get(key))
        name = f"{key.rpartition('.')[2]}={f'{value:g}' if isinstance(value, float) else value}"
    name = re.sub(r"[^\w.=+-]+", "_", name)[:40].strip("_")
    shown = shown or workdir
    place = shown.resolve() if shown.name in ("", "..") else shown
    other = place.with_name(f"{place.name[:80]}-{name}")
    raise UserError(
        f"{shown} has the results of another setting ({words}). Choose another directory, for example"
        f" --workdir {shlex.quote(str(other))}, or delete {shown / config.name} to replace these results."
    )


def _given(value: Any) -> Any:
    """Returns None for mappings and lists without entries, which need not be stored either."""
    return None if value in ({}, []) else value
