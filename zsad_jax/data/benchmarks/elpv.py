"""ELPV (Deitsch et al., Solar Energy 2019): electroluminescence images of solar cells."""

import pathlib

from absl import logging

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, split_normals
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError

LIST = "labels.csv"


class Elpv(Benchmark):
    """Mono- and polycrystalline cells; tested on all surely defective and a quarter of the sound ones."""

    name = "elpv"
    HOMEPAGE = "https://github.com/zae-bayern/elpv-dataset"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = (
        Archive(
            "elpv-dataset-master.zip",
            about="about 90 MB",
            url=f"{HOMEPAGE}/archive/refs/heads/master.zip",
        ),
    )
    TREE = f"{LIST} and images/cell0001.png"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {"elpv": (1131, 0)},
        "test": {"elpv": (377, 715)},
    }

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the list of cells and their images."""
        return (folder / LIST).is_file() and any(folder.glob("images/cell*"))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """The cells that are defective or sound for certain, in the order of the list."""
        listing = Listing()
        cells: dict[float, list[Sample]] = {}
        for line in (root / LIST).read_text(encoding="utf-8-sig").splitlines():
            if not line.strip():
                continue
            file_name, probability, kind = _read_line(root, line)
            listing.known.add(str(root / file_name))
            if not (root / file_name).is_file():
                listing.issues.append(Issue("image_missing", file_name, LIST))
                continue
            cell = Sample(
                image=str(root / file_name),
                label=int(probability == 1),
                category=cls.name,
                defect=kind if probability == 1 else "good",
                file_name=file_name,
            )
            cells.setdefault(probability, []).append(cell)
        defective, sound = cells.pop(1.0, []), cells.pop(0.0, [])
        logging.info(
            "%s: %d cells may or may not be defective and are left out.",
            cls.TITLE,
            sum(map(len, cells.values())),
        )
        tested, left = split_normals(sound)
        listing.add("train", left)
        listing.add("test", tested + defective)
        return listing


def _read_line(root: pathlib.Path, line: str) -> tuple[str, float, str]:
    """The image, the probability of a defect and the kind of cell."""
    try:
        file_name, probability, kind = line.split()
        return file_name, float(probability), kind
    except ValueError as error:
        raise UserError(
            f"{root / LIST} is not the list of ELPV ({line.strip()!r} is not an image, a probability and a"
            " kind of cell): extract the official archive again."
        ) from error
