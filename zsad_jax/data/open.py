"""A dataset by its name, wherever it comes from."""

import pathlib
from collections.abc import Mapping
from typing import Any

from zsad_jax.data.base import Dataset
from zsad_jax.data.folder import read_folder
from zsad_jax.data.meta_json import META_JSON, read_meta_json
from zsad_jax.data.protocol import DATASETS
from zsad_jax.errors import NotPreparedError, UserError
from zsad_jax.files import PathLike

SYNTHETIC = ("synthetic_aux", "synthetic_target")

Spec = str | Mapping[str, Any]


def open_dataset(spec: Spec, data_dir: PathLike, *, split: str = "test", **options: Any) -> Dataset:
    """Opens a dataset: synthetic, prepared with tensorflow-datasets, with a meta.json, or a folder.

    Args:
      spec: a dataset's key ("mvtec_ad", "synthetic_target"), or {"folder": PATH, …} with the arguments of
        `read_folder`, or {"meta_json": ROOT, …} with those of `read_meta_json`.
      data_dir: where prepared datasets lie: `<data_dir>/<key>`.
      split: which split is read.
      options: further arguments of `read_folder` or `read_meta_json`, whichever reads it.

    Raises:
      UserError: it is not there; the message says which command prepares it.
    """
    check_available(spec, data_dir)
    if not isinstance(spec, str):
        return _open_described(spec, split=split, **options)
    root = _meta_json_root(spec, data_dir)
    prepared = spec in SYNTHETIC or _is_prepared(spec, data_dir)
    if options and (prepared or root is None):
        raise UserError(f"The dataset {spec} takes no options, but {', '.join(options)} was given.")
    if spec in SYNTHETIC:
        from zsad_jax.data import synthetic

        return synthetic.load(spec)
    if prepared:
        from zsad_jax.data import builders

        return builders.open_prepared(spec, data_dir, split)
    assert root is not None  # or it would not be available
    return read_meta_json(root, name=spec, split=split, **options)


def is_available(spec: Spec, data_dir: PathLike) -> bool:
    """Whether a dataset can be opened; a look at the disk, nothing is read."""
    if not isinstance(spec, str):
        return pathlib.Path(_described_path(spec)).is_dir()
    return (
        spec in SYNTHETIC
        or _is_prepared(spec, data_dir)
        or _meta_json_root(spec, data_dir) is not None
    )


def check_available(spec: Spec, data_dir: PathLike) -> None:
    """Makes sure, before anything long starts, that a dataset can be opened.

    Raises:
      UserError: it cannot; the message says which command prepares it.
    """
    if is_available(spec, data_dir):
        return
    if not isinstance(spec, str):
        raise UserError(f"There is no folder {_described_path(spec)}.")
    from zsad_jax.data import builders

    if spec in builders.names():
        raise NotPreparedError(f"{builders.how_to_prepare(spec, data_dir)}.")
    raise UserError(
        f"There is no dataset {spec!r}: known are {', '.join((*builders.names(), *SYNTHETIC))}, and any"
        f" folder with a meta.json, as {pathlib.Path(data_dir, spec)}."
    )


def _open_described(spec: Mapping[str, Any], **options: Any) -> Dataset:
    path = _described_path(spec)
    options |= {key: value for key, value in spec.items() if key not in ("folder", "meta_json")}
    try:
        return read_folder(path, **options) if "folder" in spec else read_meta_json(path, **options)
    except TypeError as error:
        raise UserError(
            f"The dataset {dict(spec)} has an entry that is not known ({error})."
        ) from error


def _described_path(spec: Mapping[str, Any]) -> Any:
    if ("folder" in spec) == ("meta_json" in spec):
        raise UserError(
            f'A dataset is a name, {{"folder": PATH}} or {{"meta_json": ROOT}}, not {dict(spec)}.'
        )
    return spec["folder"] if "folder" in spec else spec["meta_json"]


def _is_prepared(name: str, data_dir: PathLike) -> bool:
    """Whether tensorflow-datasets has written it: `<data_dir>/<name>/<version>/dataset_info.json`."""
    # Unfinished preparations lie in incomplete.* beside the versions.
    return any(pathlib.Path(data_dir, name).glob("[0-9]*/dataset_info.json"))


def _meta_json_root(name: str, data_dir: PathLike) -> pathlib.Path | None:
    about = DATASETS.get(name)
    folders = [pathlib.Path(data_dir, one) for one in (name, about.folder if about else "") if one]
    return next((one for one in folders if (one / META_JSON).is_file()), None)
