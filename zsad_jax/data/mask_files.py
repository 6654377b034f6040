"""Masks of a folder, paired with images by name."""

import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence

from zsad_jax.errors import UserError

MASK_STEM = re.compile(r"(?P<stem>.+)_(mask|label|gt|segmentation)\d*", re.IGNORECASE)


class MaskFiles:
    """Mask files by the name of the image that they belong to."""

    def __init__(self, root: pathlib.Path, files: Sequence[str]):
        self._root = root
        self._files = files
        self._used: dict[str, str] = {}
        self._by_key: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            for key in self._keys(pathlib.PurePosixPath(file)):
                self._by_key[key].append(file)

    def __bool__(self) -> bool:
        return bool(self._files)

    @staticmethod
    def _keys(file: pathlib.PurePosixPath) -> set[str]:
        """The names an image may have: the mask's own, without `_mask`, and that of its folder.

        The last is MVTec LOCO's way: several masks `<stem>/000.png` for one image.
        """
        match = MASK_STEM.fullmatch(file.stem)
        own = {str(file.with_suffix(""))}
        bare = {str(file.with_name(match["stem"]))} if match else set()
        folder = {str(file.parent)} if len(file.parts) > 1 else set()
        return own | bare | folder

    def of(self, image: str) -> tuple[str, ...]:
        """The masks of an image; leading folders that only the images have do not matter."""
        parts = pathlib.PurePosixPath(image).with_suffix("").parts
        for start in range(len(parts)):
            files = self._by_key.get("/".join(parts[start:]), [])
            for file in files:
                if self._used.setdefault(file, image) != image:
                    raise UserError(
                        f"The mask {self._root / file} fits two images, {self._used[file]} and {image}; "
                        "put the masks into the same subfolders as the images."
                    )
            if files:
                return tuple(str(self._root / file) for file in files)
        return ()

    def unused(self) -> list[str]:
        """Masks that no image has asked for."""
        return [str(self._root / file) for file in self._files if file not in self._used]
