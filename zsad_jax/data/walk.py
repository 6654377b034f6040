"""Files and folders of datasets on disk: which are images, which are hidden, and what a folder contains."""

import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from zsad_jax.data.issues import Issue
from zsad_jax.utils.files import PathLike

# Folders mix formats and spellings: BrainMRI has jpg, JPG, jpeg and png.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
# Of macOS and Windows, and thumbnails, snapshots and trash of network storage, in lower case.
SYSTEM_FILES = (
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found"),
    *("$recycle.bin", "system volume information", "@eadir", "@tmp", "@recycle", "#recycle"),
    *("#snapshot", "@recently-snapshot", "@__thumb"),
)


def is_image(name: str) -> bool:
    """Returns whether the extension of a file is that of an image."""
    return name.lower().endswith(EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is hidden, or was left behind by an operating system or a NAS."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def plain(name: str) -> str:
    """Removes differences of case, separators and Unicode form from a name or a path."""
    # macOS stores accents as separate characters (NFD), other systems as written.
    return unicodedata.normalize("NFC", name).lower().replace(" ", "_").replace("-", "_")


def list_images(folder: PathLike) -> list[pathlib.Path]:
    """Lists the images directly in a folder, sorted; none if there is no such folder."""
    return [path for path in _visible(folder) if is_image(path.name) and path.is_file()]


def list_folders(folder: PathLike) -> list[pathlib.Path]:
    """Lists the folders directly in a folder, sorted; none if there is no such folder."""
    return [path for path in _visible(folder) if path.is_dir()]


def find_folder(parent: PathLike, *names: str) -> pathlib.Path | None:
    """Returns the subfolder with one of these names, in any spelling; earlier names are preferred."""
    below = {plain(folder.name): folder for folder in reversed(list_folders(parent))}
    return next((below[plain(name)] for name in names if plain(name) in below), None)


def relative(path: PathLike, root: PathLike) -> str:
    """Returns a path relative to a folder, with "/" between folders."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def walk(
    root: PathLike,
    start: PathLike | None = None,
    *,
    skip: Callable[[str], bool] = lambda name: False,
    ignored: list[Issue] | None = None,
) -> Iterator[str]:
    """Yields the files below a folder, relative to it and with "/" between folders, folder by folder.

    Links are followed after folders, to each folder once, and never to one that contains the root.

    Args:
      root: the folder that names are relative to.
      start: the folder in it that is searched; None = the root.
      skip: whether to skip a file or folder, from its relative name.
      ignored: hidden files, all files in hidden folders, and folders that cannot be read are added here.
    """
    # Links are appended to the starts, so that a folder is listed under its own name if it has one.
    starts = [os.fspath(start or root)]
    # The parents are seen: a link to one of them would list the root again.
    seen = {str(one) for one in pathlib.Path(starts[0]).resolve().parents}

    def report(error: OSError) -> None:
        if ignored is not None:
            name = relative(error.filename, root)
            ignored.append(Issue("folder_unreadable", name, error.strerror or ""))

    for place in starts:
        # Without os.walk's own following of links, which never ends if a link leads to a folder above it.
        for folder, below, files in os.walk(place, onerror=report):
            real = os.path.realpath(folder)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            inside = relative(folder, root)
            prefix = "" if inside == "." else f"{inside}/"
            if ignored is not None:
                hidden = [one for one in (*below, *files) if is_hidden(one)]
                ignored += [Issue("hidden", one) for one in _list_hidden(root, prefix, hidden)]
            wanted = [one for one in sorted(files) if not is_hidden(one) and not skip(prefix + one)]
            # In place: os.walk reads this list to decide where it goes next, and in which order.
            below[:] = [
                one for one in sorted(below) if not is_hidden(one) and not skip(prefix + one)
            ]
            paths = [os.path.join(folder, one) for one in below]
            starts += [path for path in paths if os.path.islink(path)]
            yield from (prefix + one for one in wanted)


def _list_hidden(root: PathLike, prefix: str, names: Iterable[str]) -> Iterator[str]:
    """Yields hidden files, and all files in hidden folders, so that every file is accounted for."""
    for name in names:
        path = os.path.join(root, prefix + name)
        inside = (os.path.join(folder, one) for folder, _, files in os.walk(path) for one in files)
        found = inside if os.path.isdir(path) else [path]
        yield from (relative(one, root) for one in found)


def _visible(folder: PathLike) -> list[pathlib.Path]:
    path = pathlib.Path(folder)
    return sorted(one for one in path.iterdir() if not is_hidden(one.name)) if path.is_dir() else []
