"""What the layouts of benchmarks have in common: finding images, and pairing masks with them."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from zsad_jax.data.base import Fault, Sample
from zsad_jax.data.folder import EXTENSIONS

Path = pathlib.Path


@dataclasses.dataclass
class Listing:
    """What was found of a benchmark, nothing read yet.

    Attributes:
      samples: per split, in the order in which they are written. `prompt_name` may be left out.
      faults: what does not belong together.
    """

    samples: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)
    faults: list[Fault] = dataclasses.field(default_factory=list)

    def add(self, split: str, samples: Iterable[Sample]) -> None:
        """Appends samples to a split."""
        self.samples.setdefault(split, []).extend(samples)


def list_images(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted; no hidden files, any spelling of the extension."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


def list_folders(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def list_mvtec_layout(
    root: Path,
    categories: Sequence[str],
    *,
    normal: str = "good",
    splits: Sequence[str] = ("train", "test"),
) -> Listing:
    """Reads `<category>/<split>/<defect>/000.png` with `<category>/ground_truth/<defect>/000_mask.png`.

    Images come category by category, then by kind of defect and file name.

    Args:
      root: folder of the categories.
      categories: their names, in order; those without a folder are left out.
      normal: name of the folder of normal images.
      splits: names of the splits' folders, which are the names of the splits.
    """
    listing = Listing()
    for category in categories:
        for split in splits:
            for folder in list_folders(root / category / split):
                is_normal = folder.name == normal
                masks = root / category / "ground_truth" / folder.name
                found = list_pairs(root, folder, None if is_normal else masks, listing.faults)
                listing.add(
                    split,
                    (
                        dataclasses.replace(
                            sample,
                            category=category,
                            defect="good" if is_normal else folder.name,
                        )
                        for sample in found
                    ),
                )
    return listing


def list_pairs(
    root: Path, images: Path, masks: Path | None, faults: list[Fault], *, mask_suffix: str = "_mask"
) -> list[Sample]:
    """The images of a folder with the masks of another; paired by stem, never by position.

    Args:
      root: folder that file names are relative to.
      images: folder of images.
      masks: folder of their masks, which makes the images anomalous; None: they are normal.
      faults: images without mask and masks without image are added here.
      mask_suffix: what a mask's stem may have after its image's.
    """
    if masks is None:
        return [
            Sample(image=str(path), file_name=name_in(root, path), has_mask=True)
            for path in list_images(images)
        ]
    unused = {path.stem.removesuffix(mask_suffix): path for path in list_images(masks)}
    samples = []
    for path in list_images(images):
        mask = unused.pop(path.stem, None)
        if mask is None:
            faults.append(Fault(name_in(root, path), "it has no mask"))
        samples.append(
            Sample(
                image=str(path),
                mask=None if mask is None else str(mask),
                has_mask=mask is not None,
                label=1,
                file_name=name_in(root, path),
            )
        )
    faults += [Fault(name_in(root, mask), "it is the mask of no image") for mask in unused.values()]
    return samples


def name_in(root: Path, path: Path) -> str:
    """The name of a file relative to the benchmark's root, the same on every system."""
    return path.relative_to(root).as_posix()
