"""The released checkpoints by name: where they are published, and where they lie here."""

import math
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import logging

from zsad_jax.backbones.checkpoints.read import read_safetensors_shapes
from zsad_jax.backbones.sizes import SIZES
from zsad_jax.utils import downloads, files
from zsad_jax.utils.errors import UserError

BASE_URL = "https://storage.googleapis.com/tips_data"
CLIP_URL = "https://huggingface.co/timm/{}/resolve/main/open_clip_model.safetensors"
MERGES_URL = "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz"
MERGES_BYTES = 1_356_917
MERGES_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
TOKENIZER_URL = f"{BASE_URL}/v1_0/checkpoints/tokenizer.model"
LINEAGES = ("native", "pytorch")
SIDES = ("vision", "text")
ASSETS = pathlib.Path(__file__).parent / "nano"
SHIPPED = ("tips-nano", "clip-nano")

# Recorded by others, not published by the authors: a difference is told, not refused.
RECORDED_SHA256 = {
    "tips/tokenizer.model": "1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec",
    "tips/pytorch/tips_oss_l14_highres_distilled_vision.npz": (
        "3421b4e0d473cafe5e9cdbd2bf05b5c346270b6be05a27b0af7eca0734639c80"
    ),
    "clip/clip-vit-b16.safetensors": (
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f"
    ),
}


class WeightFiles(NamedTuple):
    """The files of a model; None where its family has no such file, or CLIP's merges cannot be had."""

    weights: files.PathLike | None = None  # both towers
    vision: files.PathLike | None = None
    text: files.PathLike | None = None
    tokenizer: files.PathLike | None = None


class Release(NamedTuple):
    """A published TIPS.

    Attributes:
      native, pytorch: file names without "_vision.npz"; several where the sources disagree, tried in
        order.
      version: folder of the release.
    """

    native: tuple[str, ...]
    pytorch: tuple[str, ...]
    version: str


def _first(stem: str) -> Release:
    names = (f"tips_oss_{stem}",)
    return Release(names, names, "v1_0")


def _second(*stems: str) -> Release:
    native = tuple(f"tips_v2_{stem}" for stem in stems)
    return Release(native, tuple(f"tips_v2_oss_{stem}" for stem in stems), "v2_0")


RELEASES = {
    "tips-s14-hr": _first("s14_highres_distilled"),
    "tips-b14-hr": _first("b14_highres_distilled"),
    "tips-l14-hr": _first("l14_highres_distilled"),
    "tips-so400m14-hr": _first("so400m14_highres_largetext_distilled"),
    "tips-g14-lr": _first("g14_lowres"),
    "tips-g14-hr": _first("g14_highres"),
    "tipsv2-b14": _second("b14"),
    "tipsv2-l14": _second("l14"),
    # The release's readme says so14, its download script so400m14.
    "tipsv2-so400m14": _second("so14", "so400m14"),
    "tipsv2-g14": _second("g14"),
}
# OpenAI's weights as open_clip's authors publish them.
CLIP_RELEASES = {
    "clip-vit-b32": "vit_base_patch32_clip_224.openai",
    "clip-vit-b16": "vit_base_patch16_clip_224.openai",
    "clip-vit-l14": "vit_large_patch14_clip_224.openai",
    "clip-vit-l14-336": "vit_large_patch14_clip_336.openai",
}


class _Published(NamedTuple):
    """One file of a release.

    Attributes:
      label: what it is, for people.
      places: where it may lie and where it is fetched from (None: only a user puts it there), in order.
      check: says what is wrong with a fetched file, "" when nothing is.
      size, sha256: of the file, where published.
    """

    label: str
    places: Sequence[tuple[pathlib.Path, str | None]]
    check: Callable[[pathlib.Path], str] = lambda path: ""
    size: int | None = None
    sha256: str | None = None

    def find(self) -> pathlib.Path | None:
        """Where the file lies, if it is here."""
        return next((path for path, _ in self.places if path.exists()), None)

    def obtain(self) -> pathlib.Path:
        """Where the file lies; it is fetched if it is not here."""
        if (path := self.find()) is not None:
            return path
        sources = [(path, url) for path, url in self.places if url is not None]
        for path, url in sources[:-1]:
            try:
                return self._fetch(path, url)
            except downloads.NotPublishedError:
                continue
        return self._fetch(*sources[-1])

    def _fetch(self, path: pathlib.Path, url: str) -> pathlib.Path:
        downloads.fetch(
            url,
            path,
            label=self.label,
            instructions=f"fetch it by other means and put it at {path}",
            size=self.size,
            sha256=self.sha256,
            check=self.check,
        )
        recorded = RECORDED_SHA256.get(path.relative_to(_folder()).as_posix())
        if recorded is not None and files.digest(path) != recorded:
            logging.warning(
                "%s is not the file that others have recorded (SHA-256 %s).", path, recorded
            )
        return path


def names() -> list[str]:
    """All names that `locate` knows, the shipped ones last."""
    return [*RELEASES, *CLIP_RELEASES, *SHIPPED]


def locate(name: str, lineage: str = "native") -> WeightFiles:
    """Says where a model's files lie; what is missing is fetched first.

    CLIP's merges may stay away (they serve texts, and the words of learned prompts are known without them):
    that is a warning.

    Args:
      name: a released checkpoint ("tips-l14-hr") or a shipped one ("tips-nano").
      lineage: "native" (the JAX files) or "pytorch", for TIPS.

    Raises:
      UserError: unknown name or lineage, or a file that cannot be fetched.
    """
    _check_known(name, lineage)
    if name in SHIPPED:
        return _shipped_files(name)
    published = _published_files(name, lineage)
    found: dict[str, pathlib.Path | None] = {}
    for kind, file in published.items():
        try:
            found[kind] = file.obtain()
        except UserError as error:
            if name not in CLIP_RELEASES or kind != "tokenizer":
                raise
            logging.warning("%s", error)
    return WeightFiles(**found)


def places(name: str, lineage: str = "native") -> WeightFiles:
    """Where a model's files lie, or will lie when they are fetched."""
    _check_known(name, lineage)
    if name in SHIPPED:
        return _shipped_files(name)
    published = _published_files(name, lineage).items()
    return WeightFiles(**{kind: file.find() or file.places[0][0] for kind, file in published})


def missing_files(name: str, lineage: str = "native") -> list[pathlib.Path]:
    """The files of a model that are not here yet and would be fetched."""
    paths = [pathlib.Path(path) for path in places(name, lineage) if path is not None]
    return [path for path in paths if not path.exists()]


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
    return files.home() / "weights"


def _shipped_files(name: str) -> WeightFiles:
    folder, stem = ASSETS / name, name.replace("-", "_")
    if name.startswith("clip"):
        tokenizer = folder / "bpe_simple_vocab.txt.gz"
        return WeightFiles(weights=folder / f"{stem}.safetensors", tokenizer=tokenizer)
    vision, text = (folder / f"{stem}_{side}.npz" for side in SIDES)
    return WeightFiles(vision=vision, text=text, tokenizer=folder / "tokenizer.model")


def _published_files(name: str, lineage: str) -> dict[str, _Published]:
    """The files of a release by their fields of `WeightFiles`."""
    if name in CLIP_RELEASES:
        return _clip_files(name)
    release, folder = RELEASES[name], _folder() / "tips"
    remote = f"{BASE_URL}/{release.version}/checkpoints/"
    remote += "scenic" if lineage == "native" else "pytorch"
    stems = release.native if lineage == "native" else release.pytorch
    published = {
        side: _Published(
            f"the {side} tower of {name}",
            [
                (folder / lineage / f"{stem}_{side}.npz", f"{remote}/{stem}_{side}.npz")
                for stem in stems
            ],
            check=_npz_check(count_arrays(name, lineage, side)),
        )
        for side in SIDES
    }
    tokenizer = [(folder / "tokenizer.model", TOKENIZER_URL)]
    return {**published, "tokenizer": _Published("the tokenizer of TIPS", tokenizer)}


def _clip_files(name: str) -> dict[str, _Published]:
    path = _folder() / "clip" / f"{name}.safetensors"
    url = CLIP_URL.format(CLIP_RELEASES[name])
    merges = [(path.with_name("bpe_simple_vocab_16e6.txt.gz"), MERGES_URL)]
    return {
        "weights": _Published(
            f"the weights of {name}",
            [(path, url), (path.with_suffix(".npz"), None)],
            check=_safetensors_check(count_values(name)),
        ),
        "tokenizer": _Published("the tokenizer of CLIP", merges, size=MERGES_BYTES, sha256=MERGES_SHA256),
    }  # fmt: skip


def count_arrays(name: str, lineage: str, side: str) -> int | None:
    """How many arrays a file of a released TIPS holds, where that is known."""
    vision, text = SIZES[name]
    if side == "text":
        return 16 * text["depth"] + 4 if lineage == "native" else None
    if lineage == "pytorch":
        return 14 * vision["depth"] + 8
    return (18 if vision["feed_forward"] == "swiglu" else 16) * vision["depth"] + 6


def count_values(name: str) -> int:
    """How many numbers the arrays of a released CLIP hold, whoever named them; scalars do not count."""
    vision, text = SIZES[name]
    total = 0
    for tower, first in (
        (vision, 3 * vision["patch_size"] ** 2 + vision["grid"] ** 2 + 2 + 4),
        (text, text["vocabulary"] + text["length"] + 2),
    ):
        width, hidden = tower["width"], tower["mlp_dim"]
        block = 4 * width**2 + 2 * width * hidden + 9 * width + hidden
        total += (first + tower["embed_dim"]) * width + tower["depth"] * block
    return total


def _npz_check(expected: int | None) -> Callable[[pathlib.Path], str]:
    def check(path: pathlib.Path) -> str:
        """What is wrong with a weight file, told from its table of contents alone."""
        try:
            with zipfile.ZipFile(path) as archive:
                found = len(archive.namelist())
        except zipfile.BadZipFile:
            return "it is not an npz file"
        return "" if expected in (None, found) else f"it has {found} arrays instead of {expected}"

    return check


def _safetensors_check(expected: int) -> Callable[[pathlib.Path], str]:
    def check(path: pathlib.Path) -> str:
        """The same; integers (ids of positions) do not count."""
        try:
            shapes = read_safetensors_shapes(path).values()
        except ValueError:
            return "it is not a whole safetensors file"
        found = sum(math.prod(shape) for kind, shape in shapes if "F" in kind and shape)
        return "" if found == expected else f"it holds {found:,} numbers instead of {expected:,}"

    return check
