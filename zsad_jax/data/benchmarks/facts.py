"""Facts about the datasets, which builders, reports and commands share: the records of `facts.toml`."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from zsad_jax.data.benchmarks.counts import ALL, Pair, Published, total

Level = Literal["image", "pixel"]
Domain = Literal["industrial", "medical", ""]
BOTH: tuple[Level, ...] = ("image", "pixel")

# Names of the folder of images and of that of their masks, in order of preference.
FolderPair = Sequence[Sequence[str]]
IMAGES_AND_MASKS: FolderPair = (("images", "image"), ("masks", "mask"))


class Archive(NamedTuple):
    """An officially distributed file.

    Attributes:
      file_name: its published name.
      summary: its size or content, for people ("4.9 GB", "106 strips").
      sha256, md5: of the whole file, where one is known.
      url: where anybody can download it; "" when terms must be accepted first.
      size: in bytes, where it is known.
    """

    file_name: str
    summary: str
    sha256: str | None = None
    url: str = ""
    size: int | None = None
    md5: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MvtecLayout:
    """`<category>/<split>/<defect>/000.png` with `<category>/ground_truth/<defect>/000_mask.png`.

    Attributes:
      normal: the folder of normal images.
      splits: the splits and their folders.
      ground_truth: the folder of the masks, below the category's.
      marks: folders of a category that identify the benchmark; one of them is enough.
    """

    normal: str = "good"
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "test": "test"}
    )
    ground_truth: str = "ground_truth"
    marks: Sequence[str] = ("test/good",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoFolders:
    """A folder of normal images and one of anomalous ones, or `images` or `image` below each; no masks.

    Attributes:
      normal, anomalous: names of the two folders, in any case, in order of preference.
      stem: a pattern for the names of most anomalous images, where nothing else identifies the benchmark.
      defect: what the anomalous images show.
      drawn: whether a quarter of the normal images is in the test split and the others in the train split.
    """

    normal: Sequence[str]
    anomalous: Sequence[str]
    stem: str = ".*"
    defect: str
    drawn: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedFolders:
    """A folder of images and one of their masks, without normal images.

    Attributes:
      folders: the names of the two folders, per split.
      parent: a regular expression for the name of the folder above them, where nothing else identifies
        the benchmark; a folder that the user names may have any name.
      own: names of the two folders that only this benchmark has.
      mask_suffix, image_suffix: what stems may have after the part that an image and its mask share.
      defect: what all images show.
    """

    folders: Mapping[str, FolderPair] = dataclasses.field(
        default_factory=lambda: {"test": IMAGES_AND_MASKS}
    )
    parent: str = ""
    own: FolderPair | None = None
    mask_suffix: str = "_mask"
    image_suffix: str = ""
    defect: str


SharedLayout = MvtecLayout | TwoFolders | PairedFolders
LAYOUTS: dict[str, type[SharedLayout]] = {
    "mvtec": MvtecLayout,
    "two_folders": TwoFolders,
    "paired_folders": PairedFolders,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a dataset besides its files.

    Attributes:
      title: its usual spelling.
      about: what it consists of.
      domain: the mean that it belongs to; "" for none.
      levels: at which metrics are defined: "image" needs normal images, "pixel" needs masks.
      prompt_names: names in the published prompts that do not follow the plain rule: for all, or by category.
      descriptive_names: names in the published code of Bayes-PFL, where they differ from these.
      aaclip_names: the same for AA-CLIP.
      folder: of the prepared copy that circulates with a meta.json (linked from AdaCLIP's README).
      homepage: where people get it.
      license: of the data.
      terms: what the manual download of the archives requires, if a program cannot download them.
      archives: the official files; none of what the library draws.
      unpack: the command that unpacks archives that Python cannot (7z, rar, split, with a password).
      tree: paths below the root that show the layout, for people.
      layout: of its files; None if the module `<key>` of this package finds them.
      excluded: glob patterns, relative to the root and in any case, of files and folders with images that are
        not part of the benchmark on purpose; all other unused images are reported.
      counts: published numbers of images; None for a category of which only the name is published.
    """

    title: str
    about: str = ""
    domain: Domain = "industrial"
    levels: Sequence[Level] = BOTH
    prompt_names: str | Mapping[str, str] = dataclasses.field(default_factory=dict)
    descriptive_names: str | Mapping[str, str] = dataclasses.field(default_factory=dict)
    aaclip_names: str | Mapping[str, str] = dataclasses.field(default_factory=dict)
    folder: str = ""
    homepage: str = ""
    license: str
    terms: str = "accept the terms first"
    archives: Sequence[Archive] = ()
    unpack: str = ""
    tree: str = ""
    layout: SharedLayout | None = None
    excluded: Sequence[str] = ()
    counts: Published = dataclasses.field(default_factory=dict)

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of the test split, in the order of the tables."""
        return tuple(name for name in self.counts.get("test", {}) if name != ALL)

    @property
    def published(self) -> Pair | None:
        """The numbers of (normal, anomalous) images of the test split; None if not published."""
        return total(self.counts["test"]) if "test" in self.counts else None

    @property
    def open_to_all(self) -> bool:
        """Whether a program can download all archives."""
        return bool(self.archives) and all(archive.url for archive in self.archives)


def _read_facts(
    *,
    archives: Sequence[Mapping[str, Any]] = (),
    layout: Mapping[str, Any] | None = None,
    categories: Sequence[str] = (),
    counts: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    **fields: Any,
) -> Facts:
    """Makes a record of a table; `categories` are those of which only the names are published."""
    options = dict(layout or {})
    return Facts(
        archives=tuple(Archive(**archive) for archive in archives),
        layout=LAYOUTS[options.pop("kind")](**options) if options else None,
        counts={
            split: {name: (normal, anomalous) for name, (normal, anomalous) in numbers.items()}
            | dict.fromkeys(categories)
            for split, numbers in (counts or {}).items()
        },
        **fields,
    )


# Read at import: configs, reports and commands all need the table, and it takes about 30 ms.
with open(pathlib.Path(__file__).with_name("facts.toml"), "rb") as _file:
    DATASETS = {key: _read_facts(**table) for key, table in tomllib.load(_file).items()}
