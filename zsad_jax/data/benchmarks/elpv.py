"""ELPV: solar cells with a list of the probabilities of a defect."""

import pathlib

from absl import logging

from zsad_jax.data.benchmarks.layouts import Layout
from zsad_jax.data.benchmarks.listing import Listing
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError, plural

LIST = "labels.csv"


def _is_root(folder: pathlib.Path) -> bool:
    return (folder / LIST).is_file() and any(folder.glob("images/cell*"))


def list_files(root: pathlib.Path) -> Listing:
    """Lists the cells that are defective or sound for certain, in the order of the list."""
    listing = Listing(root)
    cells: dict[float, list[Sample]] = {}
    for line in (root / LIST).read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue
        file_name, probability, kind = _read_line(root, line)
        path = root / file_name
        listing.known.add(str(path))
        if not path.is_file():
            listing.issues.append(Issue("image_missing", file_name, LIST))
            continue
        label = int(probability == 1)
        cell = listing.sample(path, label=label, category="elpv", defect=kind if label else "good")
        # Cells between sound (0) and defective (1) were labeled with doubt; published numbers exclude them.
        cells.setdefault(probability, []).append(cell)
    defective, sound = cells.pop(1.0, []), cells.pop(0.0, [])
    uncertain = sum(map(len, cells.values()))
    logging.info("ELPV: excluded %s that may be defective.", plural(uncertain, "cell"))
    listing.add_drawn(sound, defective)
    return listing


def _read_line(root: pathlib.Path, line: str) -> tuple[str, float, str]:
    try:
        # Despite its name, the file has spaces between its columns, and no header.
        file_name, probability, kind = line.split()
        return file_name, float(probability), kind
    except ValueError as error:
        raise UserError(
            f"{root / LIST} is not the list of ELPV, since it has the line {line.strip()!r}. Expected an image,"
            " a probability and a kind of cell. Extract the official archive again."
        ) from error


LAYOUT = Layout(_is_root, list_files)
