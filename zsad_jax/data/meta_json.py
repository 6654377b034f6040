"""The community's `meta.json` datasets, as AnomalyCLIP, AdaCLIP, TIPSomaly and others prepare and read them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging

from zsad_jax.data.base import Dataset, Fault, Sample, Samples
from zsad_jax.data.protocol import Naming, prompt_name
from zsad_jax.errors import UserError
from zsad_jax.files import PathLike

META_JSON = "meta.json"
D = TypeVar("D", bound=Dataset)


class NoSplitError(UserError):
    """A meta.json that can be read has no images in a split."""


class NoImagesError(UserError):
    """None of the images that a meta.json lists in a split is there."""


def read_meta_json(
    roots: PathLike | Sequence[PathLike],
    *,
    name: str | None = None,
    split: str = "test",
    prompt_names: Mapping[str, str] | None = None,
    naming: Naming = "published",
) -> Samples:
    """Reads `<root>/meta.json`: {"train": {category: [sample, …]}, "test": {…}}.

    A sample has img_path, mask_path ("" = none), cls_name, specie_name and anomaly. Paths are relative to
    the root; an absolute one of the author's disk is looked for under the root by its longest suffix that
    exists. An image is counted once, however often or in however many roots it is listed. An anomalous
    image without mask keeps has_mask False, so that pixel metrics leave it out.

    Args:
      roots: the folder with `meta.json`, or several that make up one dataset.
      name: of the dataset; None = the (first) folder's name.
      split: "test", "train" or "all", compared case-insensitively.
      prompt_names: how categories are called in prompts; `naming` tells the others'.
      naming: see `prompt_name`.

    Raises:
      NoSplitError: there is no such split.
      NoImagesError: none of its images exists.
      UserError: there is no such file, or it is not in this form.
    """
    given = [roots] if isinstance(roots, str | os.PathLike) else list(roots)
    folders = [pathlib.Path(one) for one in given]
    name = name or folders[0].resolve().name
    samples: dict[str, Sample] = {}
    unmasked: list[Fault] = []
    missing: list[str] = []
    repeated = 0
    for folder in folders:
        for entry in _entries(folder / META_JSON, split):
            sample, fault = _read_entry(entry, folder)
            key = os.path.realpath(str(sample.image))
            if key in samples:
                repeated += 1
                continue
            called = (prompt_names or {}).get(sample.category) or prompt_name(
                sample.category, dataset=name, naming=naming
            )
            samples[key] = dataclasses.replace(sample, prompt_name=called)
            unmasked += [fault] if fault else []
            missing += [] if os.path.isfile(key) else [str(sample.image)]
    if len(missing) == len(samples):
        first = f" (the first: {missing[0]})" if missing else ""
        raise NoImagesError(
            f"None of the images that {folders[0] / META_JSON} lists is there{first}."
        )
    _warn(name, "images", missing)
    _warn(name, "masks", [fault.file_name for fault in unmasked])
    faults = unmasked
    if repeated:
        reason = f"entries of {split!r} that repeat an image and are left out: {repeated}"
        faults = [Fault(META_JSON, reason), *unmasked]
    return Samples(name, list(samples.values()), faults=faults)


def _warn(name: str, what: str, missing: Sequence[str]) -> None:
    if missing:
        logging.warning(
            "%s: %d %s are missing, the first: %s.", name, len(missing), what, missing[0]
        )


def read_splits(read: Callable[[str], D]) -> dict[str, D | Samples]:
    """Reads what a meta.json has of the splits train and test; most medical sets have nothing to train on.

    Args:
      read: reads a split, as `read_meta_json` does.

    Returns:
      The splits; one to train on of which no image is there is empty, with a fault that says so.

    Raises:
      UserError: there is nothing to test on, or the meta.json cannot be read.
    """
    splits: dict[str, D | Samples] = {}
    for split in ("train", "test"):
        try:
            splits[split] = read(split)
        except (NoSplitError, NoImagesError) as error:
            if split == "test":
                raise
            if isinstance(error, NoImagesError):
                fault = Fault(META_JSON, f"none of the images that it lists in {split!r} is there")
                splits[split] = Samples("", [], faults=[fault])
    return splits


def _entries(path: pathlib.Path, split: str) -> Iterator[Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        splits = {key.lower(): value for key, value in content.items()}
        filled = [key for key, categories in splits.items() if any((categories or {}).values())]
        wanted = [key for key in filled if split.lower() in (key, "all")]
        if not wanted:
            known = ", ".join(filled) or "none"
            raise NoSplitError(f"{path} has no split {split!r} (it has: {known}).")
        for key in wanted:
            for category, entries in splits[key].items():
                for entry in entries:
                    if not entry["img_path"]:
                        raise KeyError("img_path")
                    yield {"cls_name": category} | entry
    except FileNotFoundError:
        raise UserError(f"There is no {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a meta.json of the known form ({error}).") from error


def _read_entry(entry: Mapping[str, Any], root: pathlib.Path) -> tuple[Sample, Fault | None]:
    """A sample, and what is amiss with its mask."""
    image = _resolve(entry["img_path"], root)
    label = int(entry.get("anomaly", 0))
    mask = _resolve(entry["mask_path"], root) if label and entry.get("mask_path") else None
    file_name = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
    fault = None
    if mask is not None and not mask.is_file():
        # Some files name the folder instead of a mask where there is none.
        reason = f"its mask {entry['mask_path']} is missing"  # in the words of the file
        fault = None if mask.is_dir() else Fault(file_name, reason)
        mask = None
    sample = Sample(
        image=str(image),
        mask=None if mask is None else str(mask),
        has_mask=not label or mask is not None,
        label=label,
        category=str(entry["cls_name"]),
        defect=str(entry.get("specie_name") or ("" if label else "good")),
        file_name=file_name,
    )
    return sample, fault


def _resolve(path: str, root: pathlib.Path) -> pathlib.Path:
    """Where a listed file lies under the root; a path that does not exist when it is nowhere."""
    # Files prepared on Windows have its separators.
    listed = pathlib.PurePosixPath(path if (root / path).exists() else path.replace("\\", "/"))
    direct = root / listed
    if direct.exists() or not (listed.is_absolute() or listed.parts[0].endswith(":")):
        return direct
    suffixes = (root.joinpath(*listed.parts[start:]) for start in range(1, len(listed.parts)))
    return next((one for one in suffixes if one.exists()), direct)
