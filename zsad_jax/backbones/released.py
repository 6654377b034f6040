"""The released checkpoints by name: where they are published, and where they lie here."""

import pathlib
import zipfile
from typing import NamedTuple

from absl import logging

from zsad_jax import downloads, files
from zsad_jax.errors import UserError

BASE_URL = "https://storage.googleapis.com/tips_data"
LINEAGES = ("native", "pytorch")
SIDES = ("vision", "text")
ASSETS = pathlib.Path(__file__).parents[1] / "assets"
SHIPPED = ("tips-nano",)
TOKENIZER_URL = f"{BASE_URL}/v1_0/checkpoints/tokenizer.model"

# Recorded by others, not published by the authors: a difference is told, not refused.
RECORDED_SHA256 = {
    "tokenizer.model": "1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec",
    "pytorch/tips_oss_l14_highres_distilled_vision.npz": (
        "3421b4e0d473cafe5e9cdbd2bf05b5c346270b6be05a27b0af7eca0734639c80"
    ),
}


class WeightFiles(NamedTuple):
    """The three files of a model."""

    vision: pathlib.Path
    text: pathlib.Path
    tokenizer: pathlib.Path


class Release(NamedTuple):
    """A published model.

    Attributes:
      native, pytorch: file names without "_vision.npz"; several where the sources disagree, tried in
        order.
      version: folder of the release.
      vision_depth, text_depth: numbers of blocks.
      swiglu: whether the vision tower's feed-forward part is gated.
    """

    native: tuple[str, ...]
    pytorch: tuple[str, ...]
    version: str
    vision_depth: int
    text_depth: int = 12
    swiglu: bool = False

    def count_arrays(self, lineage: str, side: str) -> int | None:
        """How many arrays the file holds, where that is known."""
        if side == "vision":
            per_block = (18 if self.swiglu else 16) if lineage == "native" else 14
            return per_block * self.vision_depth + (6 if lineage == "native" else 8)
        return 16 * self.text_depth + 4 if lineage == "native" else None


def _first(stem: str, depth: int, text_depth: int = 12, *, swiglu: bool = False) -> Release:
    names = (f"tips_oss_{stem}",)
    return Release(names, names, "v1_0", depth, text_depth, swiglu)


def _second(*stems: str, depth: int, text_depth: int = 12, swiglu: bool = False) -> Release:
    native = tuple(f"tips_v2_{stem}" for stem in stems)
    pytorch = tuple(f"tips_v2_oss_{stem}" for stem in stems)
    return Release(native, pytorch, "v2_0", depth, text_depth, swiglu)


RELEASES = {
    "tips-s14-hr": _first("s14_highres_distilled", 12),
    "tips-b14-hr": _first("b14_highres_distilled", 12),
    "tips-l14-hr": _first("l14_highres_distilled", 24),
    "tips-so400m14-hr": _first("so400m14_highres_largetext_distilled", 27, 27),
    "tips-g14-lr": _first("g14_lowres", 40, swiglu=True),
    "tips-g14-hr": _first("g14_highres", 40, swiglu=True),
    "tipsv2-b14": _second("b14", depth=12),
    "tipsv2-l14": _second("l14", depth=24),
    # The release's readme says so14, its download script so400m14.
    "tipsv2-so400m14": _second("so14", "so400m14", depth=27, text_depth=27),
    "tipsv2-g14": _second("g14", depth=40, swiglu=True),
}


def names() -> list[str]:
    """All names that `locate` knows, the shipped ones last."""
    return [*RELEASES, *SHIPPED]


def locate(name: str, lineage: str = "native") -> WeightFiles:
    """Says where a model's files lie; what is missing is fetched first.

    Args:
      name: a released checkpoint ("tips-l14-hr") or a shipped one ("tips-nano").
      lineage: "native" (the JAX files) or "pytorch".

    Raises:
      UserError: unknown name or lineage, or a file that cannot be fetched.
    """
    _check_known(name, lineage)
    if name in SHIPPED:
        return _shipped_files(name)
    vision, text = (_obtain(name, lineage, side) for side in SIDES)
    return WeightFiles(vision, text, _obtain_tokenizer())


def missing_files(name: str, lineage: str = "native") -> list[pathlib.Path]:
    """The files of a model that are not here yet and would be fetched."""
    _check_known(name, lineage)
    if name in SHIPPED:
        return [path for path in _shipped_files(name) if not path.exists()]
    candidates = [[path for _, path in _candidates(name, lineage, side)] for side in SIDES]
    candidates.append([_folder() / "tokenizer.model"])
    return [paths[0] for paths in candidates if not any(path.exists() for path in paths)]


def fetch_command(name: str, lineage: str = "native") -> str:
    """The command that fetches a model's files."""
    option = "" if lineage == "native" else f" --lineage {lineage}"
    return f"python scripts/download_weights.py {name}{option}"


def _check_known(name: str, lineage: str) -> None:
    if lineage not in LINEAGES:
        raise UserError(f"lineage={lineage!r} is unknown; choose one of {', '.join(LINEAGES)}.")
    if name not in names():
        raise UserError(f"{name!r} is not a released checkpoint; known are {', '.join(names())}.")


def _folder() -> pathlib.Path:
    return files.home() / "weights" / "tips"


def _shipped_files(name: str) -> WeightFiles:
    folder, stem = ASSETS / name, name.replace("-", "_")
    vision, text = (folder / f"{stem}_{side}.npz" for side in SIDES)
    return WeightFiles(vision, text, folder / "tokenizer.model")


def _candidates(name: str, lineage: str, side: str) -> list[tuple[str, pathlib.Path]]:
    """Addresses and places, several where the sources disagree about a file's name."""
    release = RELEASES[name]
    folder = "scenic" if lineage == "native" else "pytorch"
    stems = release.native if lineage == "native" else release.pytorch
    return [
        (
            f"{BASE_URL}/{release.version}/checkpoints/{folder}/{stem}_{side}.npz",
            _folder() / lineage / f"{stem}_{side}.npz",
        )
        for stem in stems
    ]


def _obtain(name: str, lineage: str, side: str) -> pathlib.Path:
    candidates = _candidates(name, lineage, side)
    for _, path in candidates:
        if path.exists():
            return path
    expected = RELEASES[name].count_arrays(lineage, side)
    for position, (url, path) in enumerate(candidates):
        try:
            downloads.fetch(
                url,
                path,
                label=f"the {side} tower of {name}",
                instructions=f"fetch it by other means and put it at {path}",
                check=lambda part: _wrong_count(part, expected),
            )
        except downloads.NotPublishedError:
            if position == len(candidates) - 1:
                raise
        else:
            _compare_with_record(path, f"{lineage}/{path.name}")
            break
    return path


def _obtain_tokenizer() -> pathlib.Path:
    path = _folder() / "tokenizer.model"
    if not path.exists():
        downloads.fetch(
            TOKENIZER_URL,
            path,
            label="the tokenizer of TIPS",
            instructions=f"fetch it by other means and put it at {path}",
        )
        _compare_with_record(path, path.name)
    return path


def _wrong_count(path: pathlib.Path, expected: int | None) -> str:
    """What is wrong with a weight file, told from its table of contents alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = len(archive.namelist())
    except zipfile.BadZipFile:
        return "it is not an npz file"
    return "" if expected in (None, found) else f"it has {found} arrays instead of {expected}"


def _compare_with_record(path: pathlib.Path, key: str) -> None:
    recorded = RECORDED_SHA256.get(key)
    if recorded is not None and files.digest(path) != recorded:
        logging.warning(
            "%s is not the file that others have recorded (SHA-256 %s).", path, recorded
        )
