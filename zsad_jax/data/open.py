"""Opens a dataset by its name or its description."""

import inspect
import os
import pathlib
import typing
from collections.abc import Callable, Mapping
from typing import Any, Concatenate

from zsad_jax.data import benchmarks, synthetic
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.dataset import Dataset, Joined
from zsad_jax.data.folder import list_splits, read_folder
from zsad_jax.data.meta_json import META_JSON, read_meta_json, read_splits
from zsad_jax.data.protocols import Naming, parse_name
from zsad_jax.utils.config import describe_type, fits
from zsad_jax.utils.errors import NoSplitError, NotPreparedError, UserError, suggest
from zsad_jax.utils.files import PathLike, user_path
from zsad_jax.utils.remote import fetch

# The readers of described datasets; their keyword arguments are the further keys of a description.
READERS: dict[str, Callable[Concatenate[PathLike, ...], Dataset]] = {
    "folder": read_folder,
    "meta_json": read_meta_json,
}

Spec = str | Mapping[str, Any]


def open_dataset(
    spec: Spec, data_dir: PathLike, *, split: str = "test", naming: Naming = "published"
) -> Dataset:
    """Opens a dataset: synthetic, prepared with tensorflow-datasets, with a meta.json, or a folder.

    Args:
      spec: a key ("mvtec_ad", "synthetic_target"), a key with a split ("mvtec_ad:train"), several of them
        joined by "+" ("mvtec_ad:train+mvtec_ad:test"), {"folder": PATH, …} with the arguments of `read_folder`,
        or {"meta_json": ROOT, …} with those of `read_meta_json`, which reads every folder with a meta.json.
      data_dir: the folder of prepared datasets: `<data_dir>/<key>`.
      split: the split of keys and descriptions without one.
      naming: the names of categories of keys in prompts, see `prompt_name`.

    Raises:
      UserError: the dataset does not exist (the message has the command that prepares it), or a key or a
        value of its description is not valid.

    Example:
      >>> dataset = open_dataset("synthetic_target", "datasets")
      >>> len(dataset), dataset.categories[:2]
      (256, ('brushed_steel', 'woven_basket'))
    """
    if not isinstance(spec, str):
        return _open_described(spec, split)
    parts = parse_name(spec)
    # All are looked for before one is opened.
    openers = [(_find_opener(part.key, data_dir), part.split or split) for part in parts]
    opened = [opener(of_part, naming) for opener, of_part in openers]
    # Also for one part with a split: results are stored under the name with its split.
    return opened[0] if spec == parts[0].key else Joined(spec, opened)


def open_train_split(spec: Spec, data_dir: PathLike) -> Dataset:
    """Opens the train split of a dataset whose test split the description names.

    Raises:
      NoSplitError: it has no train split.
      UserError: the description names the train split itself, or as for `open_dataset`.
    """
    named = spec.get("split", "") if not isinstance(spec, str) else ""
    splits = [part.split for part in parse_name(spec)] if isinstance(spec, str) else [named]
    if "train" in splits:
        raise UserError(f"{spec} is a train split itself. Name another split, or none.")
    if isinstance(spec, str):
        return open_dataset("+".join(f"{one.key}:train" for one in parse_name(spec)), data_dir)
    kind, path, _ = _locate(spec)
    if kind == "folder" and "train" not in list_splits(path):
        raise NoSplitError(
            f"{path} has no train split. Arrange it as <category>/train/good and <category>/test/<defect>."
        )
    return open_dataset({**spec, "split": "train"}, data_dir)


def open_splits(spec: Spec, data_dir: PathLike) -> dict[str, Dataset]:
    """Opens all splits of a folder, or of a dataset with a meta.json (see `read_splits`)."""

    def read(split: str) -> Dataset:
        return open_dataset(spec, data_dir, split=split)

    kind, path, _ = ("meta_json", "", {}) if isinstance(spec, str) else _locate(spec)
    if kind == "folder":
        return {split: read(split) for split in list_splits(path) or ("test",)}
    return dict(read_splits(read))


def is_available(spec: Spec, data_dir: PathLike) -> bool:
    """Returns whether a dataset exists, without reading it.

    Example:
      >>> is_available("synthetic_target", "datasets"), is_available("mvtec_ad", "datasets")
      (True, False)
    """
    try:
        check_available(spec, data_dir)
    except UserError:
        return False
    return True


def check_available(spec: Spec, data_dir: PathLike) -> None:
    """Checks that a dataset exists, before anything long starts.

    Raises:
      UserError: it does not exist; the message has the command that prepares it.

    Example:
      >>> check_available("synthetic_target", "datasets")
    """
    if not isinstance(spec, str):
        _locate(spec)
        return
    for part in parse_name(spec):
        _find_opener(part.key, data_dir)


def _open_described(spec: Mapping[str, Any], split: str) -> Dataset:
    kind, path, given = _locate(spec)
    options = {"split": split, **given}
    reader = READERS[kind]
    # The signatures are the only list of keys and types, so that a new argument needs no second entry.
    arguments = inspect.signature(reader).parameters.values()
    known = [one.name for one in arguments if one.kind is one.KEYWORD_ONLY]
    types = typing.get_type_hints(reader)
    for key, value in options.items():
        if key not in known:
            raise UserError(
                f"Unknown key {key!r} of the dataset {dict(spec)}. {suggest(key, known)}"
            )
        if not fits(value, types[key]):
            expected = describe_type(types[key])
            raise UserError(
                f"{key!r} of the dataset {dict(spec)} is {value!r}. Expected {expected}."
            )
        if value == "":
            raise UserError(f"{key!r} of the dataset {dict(spec)} is empty. Set or omit it.")
    return reader(path, **options)


def parse_spec(spec: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Returns the reader, the path and the options of a description; raises `UserError` without one path."""
    kinds = [kind for kind in READERS if kind in spec]
    if len(kinds) != 1:
        remedy = suggest(str(next(iter(spec), "")), READERS)
        raise UserError(f'{dict(spec)} is not a dataset, for example {{"folder": PATH}}. {remedy}')
    what = f"{kinds[0]!r} of the dataset {dict(spec)}"
    path = user_path(spec[kinds[0]], what, remote=True)
    return kinds[0], path, {key: value for key, value in spec.items() if key not in READERS}


def _locate(spec: Mapping[str, Any]) -> tuple[str, pathlib.Path, dict[str, Any]]:
    """Returns the reader, the folder, which exists, and the options of a description."""
    kind, path, options = parse_spec(spec)
    folder = pathlib.Path(fetch(path))
    if not folder.is_dir():
        raise UserError(f"The folder {folder.absolute()} does not exist.")
    # A meta.json states labels and masks, which the names of folders only suggest.
    return "meta_json" if (folder / META_JSON).is_file() else kind, folder, options


def _find_opener(name: str, data_dir: PathLike) -> Callable[[str, Naming], Dataset]:
    """Returns the function that opens a split of a dataset; raises `UserError` if there is no such dataset."""
    if name in synthetic.CATEGORIES:
        return lambda split, naming: synthetic.Synthetic(name, split)

    def open_prepared(split: str, naming: Naming) -> Dataset:
        # Imports tensorflow-datasets, which takes a second.
        from zsad_jax.data.benchmarks.prepared import PreparedDataset

        return PreparedDataset(name, root.parent, split, naming=naming)

    other = DATASETS[name].folder if name in DATASETS else None
    for folder in dict.fromkeys((name, other or name)):
        root = pathlib.Path(fetch(os.path.join(data_dir, folder), missing_ok=True))
        if benchmarks.is_prepared(name, root.parent):
            return open_prepared
        if (root / META_JSON).is_file():
            return lambda split, naming: read_meta_json(root, name=name, split=split, naming=naming)
    if name in benchmarks.names():
        raise NotPreparedError(benchmarks.how_to_prepare(name, data_dir))
    raise UserError(
        f"Unknown dataset {name!r}. It is not a benchmark, and {os.path.join(data_dir, name)} has no"
        f" {META_JSON}. {suggest(name, DATASETS)}"
    )
