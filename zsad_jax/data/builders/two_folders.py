"""Sets without masks that consist of two folders: one of normal images, one of anomalous ones."""

import pathlib

from zsad_jax.data.base import Sample
from zsad_jax.data.builders.layouts import find_folder, list_images, list_unmasked


def find_images(root: pathlib.Path, *names: str) -> pathlib.Path | None:
    """The folder of the images of one kind: `<name>/images`, `<name>/image` or `<name>` itself.

    Args:
      root: folder of the kinds.
      names: of the kind, in any case, in order of preference.
    """
    kind = find_folder(root, *names)
    folder = kind and (find_folder(kind, "images", "image") or kind)
    return folder if folder and list_images(folder) else None


def list_two_folders(
    root: pathlib.Path,
    normal: pathlib.Path | None,
    anomalous: pathlib.Path | None,
    *,
    category: str,
    defect: str,
) -> tuple[list[Sample], list[Sample]]:
    """The normal and the anomalous images.

    Args:
      root: folder that file names are relative to.
      normal, anomalous: the folders, as `find_images` found them.
      category: of all of them.
      defect: what the anomalous ones show.
    """
    assert normal is not None  # or it would not be the root
    assert anomalous is not None
    fields = {"category": category, "has_mask": False}
    return (
        list_unmasked(root, normal, label=0, defect="good", **fields),
        list_unmasked(root, anomalous, label=1, defect=defect, **fields),
    )
