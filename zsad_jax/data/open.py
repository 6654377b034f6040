"""A dataset by its name, wherever it comes from."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from zsad_jax.data.dataset import Dataset
from zsad_jax.data.folder import read_folder
from zsad_jax.data.joined import Joined
from zsad_jax.data.meta_json import META_JSON, read_meta_json
from zsad_jax.data.protocols import DATASETS, Naming, Part, parse_name
from zsad_jax.utils.errors import NotPreparedError, UserError, suggest
from zsad_jax.utils.files import PathLike

SYNTHETIC = ("synthetic_aux", "synthetic_target")
# What a description of a dataset may hold besides the path, each with its reader.
READERS: dict[str, Callable[..., Dataset]] = {"folder": read_folder, "meta_json": read_meta_json}

Spec = str | Mapping[str, Any]


def open_dataset(
    spec: Spec,
    data_dir: PathLike,
    *,
    split: str = "test",
    naming: Naming = "published",
    **options: Any,
) -> Dataset:
    """Opens a dataset: synthetic, prepared with tensorflow-datasets, with a meta.json, or a folder.

    Args:
      spec: a dataset's key ("mvtec_ad", "synthetic_target"), a key with its split ("mvtec_ad:train"), several
        joined to one by "+" ("mvtec_ad:train+mvtec_ad:test"), or {"folder": PATH, …} with the arguments of
        `read_folder` (a folder with a meta.json is read by that), or {"meta_json": ROOT, …} with those of
        `read_meta_json`.
      data_dir: where prepared datasets lie: `<data_dir>/<key>`.
      split: which split is read of keys that do not say it.
      naming: what categories are called in prompts, see `prompt_name`.
      options: further arguments of `read_folder` or `read_meta_json`, whichever reads it.

    Raises:
      UserError: it is not there; the message says which command prepares it.
    """
    check_available(spec, data_dir)
    if not isinstance(spec, str):
        return _open_described(spec, split=split, **options)
    parts = parse_name(spec)
    opened = [_open_part(part, data_dir, split, naming, options) for part in parts]
    return opened[0] if spec == parts[0].key else Joined(spec, opened)


def is_available(spec: Spec, data_dir: PathLike) -> bool:
    """Whether a dataset can be opened; a look at the disk, nothing is read."""
    if not isinstance(spec, str):
        return pathlib.Path(_described(spec)[1]).is_dir()
    return all(_is_there(part.key, data_dir) for part in parse_name(spec))


def check_available(spec: Spec, data_dir: PathLike) -> None:
    """Makes sure, before anything long starts, that a dataset can be opened.

    Raises:
      UserError: it cannot; the message says which command prepares it.
    """
    if is_available(spec, data_dir):
        return
    if not isinstance(spec, str):
        raise UserError(f"There is no folder {_described(spec)[1]}.")
    from zsad_jax.data import benchmarks

    name = next(part.key for part in parse_name(spec) if not _is_there(part.key, data_dir))
    if name in benchmarks.names():
        raise NotPreparedError(f"{benchmarks.how_to_prepare(name, data_dir)}.")
    raise UserError(
        f"There is no dataset {name!r}, nor a folder {pathlib.Path(data_dir, name)} with a meta.json:"
        f" {suggest(name, DATASETS)}"
    )


def _open_part(
    part: Part, data_dir: PathLike, split: str, naming: Naming, options: Mapping[str, Any]
) -> Dataset:
    name, split = part.key, part.split or split
    prepared = name in SYNTHETIC or _is_prepared(name, data_dir)
    if options and prepared:
        raise UserError(f"The dataset {name} takes no options, but {', '.join(options)} was given.")
    if name in SYNTHETIC:
        from zsad_jax.data import synthetic

        return synthetic.load(name)
    if prepared:
        from zsad_jax.data import benchmarks

        return benchmarks.open_prepared(name, data_dir, split, naming=naming)
    root = _meta_json_root(name, data_dir)
    assert root is not None  # or it would not be available
    return read_meta_json(root, **{"name": name, "split": split, "naming": naming, **options})


def _open_described(spec: Mapping[str, Any], **options: Any) -> Dataset:
    kind, path = _described(spec)
    options |= {key: value for key, value in spec.items() if key != kind}
    if kind == "folder" and (pathlib.Path(path) / META_JSON).is_file():
        kind = "meta_json"
    try:
        return READERS[kind](path, **options)
    except TypeError as error:
        said = re.sub(r"^\w+\(\) got an? unexpected keyword argument", "", str(error)).strip()
        raise UserError(
            f"The dataset {dict(spec)} has an entry that is not known ({said})."
        ) from error


def _described(spec: Mapping[str, Any]) -> tuple[str, Any]:
    """What kind of folder a description is of, and where."""
    kinds = [kind for kind in READERS if kind in spec]
    if len(kinds) != 1:
        raise UserError(
            f'A dataset is a name, {{"folder": PATH}} or {{"meta_json": ROOT}}, not {dict(spec)}.'
        )
    return kinds[0], spec[kinds[0]]


def _is_there(name: str, data_dir: PathLike) -> bool:
    prepared = name in SYNTHETIC or _is_prepared(name, data_dir)
    return prepared or _meta_json_root(name, data_dir) is not None


def _is_prepared(name: str, data_dir: PathLike) -> bool:
    """Whether tensorflow-datasets has written it: `<data_dir>/<name>/<version>/dataset_info.json`."""
    # Unfinished preparations lie in incomplete.* beside the versions.
    return any(pathlib.Path(data_dir, name).glob("[0-9]*/dataset_info.json"))


def _meta_json_root(name: str, data_dir: PathLike) -> pathlib.Path | None:
    about = DATASETS.get(name)
    folders = [pathlib.Path(data_dir, one) for one in (name, about.folder if about else "") if one]
    return next((one for one in folders if (one / META_JSON).is_file()), None)
