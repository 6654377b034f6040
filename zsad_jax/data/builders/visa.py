"""VisA (Zou et al., ECCV 2022): 12 objects, the one-class split of its authors."""

import csv
import pathlib

from zsad_jax.data.base import Fault, Sample
from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing, list_images, name_in
from zsad_jax.errors import UserError

SPLIT_FILE = "split_csv/1cls.csv"


class Visa(Benchmark):
    """Industrial objects, some images with several of them; masks hold indices of kinds of defect."""

    name = "visa"
    HOMEPAGE = "https://github.com/amazon-science/spot-diff"
    LICENCE = "CC BY 4.0"
    ARCHIVES = (
        Archive(
            "VisA_20220922.tar",
            about="1.9 GB",
            sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        ),
    )
    TREE = f"{SPLIT_FILE} and candle/Data/Images/Anomaly/000.JPG"
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {
            "candle": (900, 0),
            "capsules": (542, 0),
            "cashew": (450, 0),
            "chewinggum": (453, 0),
            "fryum": (450, 0),
            "macaroni1": (900, 0),
            "macaroni2": (900, 0),
            "pcb1": (904, 0),
            "pcb2": (901, 0),
            "pcb3": (905, 0),
            "pcb4": (904, 0),
            "pipe_fryum": (450, 0),
        },
        "test": {
            "candle": (100, 100),
            "capsules": (60, 100),
            "cashew": (50, 100),
            "chewinggum": (50, 100),
            "fryum": (50, 100),
            "macaroni1": (100, 100),
            "macaroni2": (100, 100),
            "pcb1": (100, 100),
            "pcb2": (100, 100),
            "pcb3": (101, 100),
            "pcb4": (101, 100),
            "pipe_fryum": (50, 100),
        },
    }

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds the official split and images."""
        return (folder / SPLIT_FILE).is_file() and bool(list(folder.glob("*/Data/Images")))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """The rows of the official split, in its order."""
        listing = Listing()
        named: set[str] = set()
        with open(root / SPLIT_FILE, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                sample = _read_row(root, row)
                named |= {row["image"], row["mask"]}
                if not (root / row["image"]).is_file():
                    listing.faults.append(Fault(row["image"], "it is in the split but not there"))
                    continue
                if sample.label and not sample.has_mask:
                    listing.faults.append(Fault(row["image"], "it has no mask"))
                listing.add(row["split"], [sample])
        for category in cls.categories():
            for path in list_images(root / category / "Data" / "Masks" / "Anomaly"):
                if name_in(root, path) not in named:
                    fault = Fault(name_in(root, path), "it is the mask of no image in the split")
                    listing.faults.append(fault)
        return listing


def _read_row(root: pathlib.Path, row: dict[str, str]) -> Sample:
    try:
        image, mask, label = row["image"], row["mask"], row["label"]
        category, _ = row["object"], row["split"]
        anomalous = {"normal": 0, "anomaly": 1}[label]
    except KeyError as error:
        raise UserError(
            f"{root / SPLIT_FILE} is not the split of VisA ({error} is unexpected or missing):"
            " extract the official archive again."
        ) from error
    has_mask = bool(mask) and (root / mask).is_file()
    return Sample(
        image=str(root / image),
        mask=str(root / mask) if has_mask else None,
        has_mask=has_mask or not anomalous,
        label=anomalous,
        category=category,
        defect="" if anomalous else "good",
        file_name=image,
    )
