"""VisA (Zou et al., ECCV 2022): 12 objects, the one-class split of its authors."""

import csv
import dataclasses
import pathlib

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.layouts import Listing
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError

SPLIT_FILE = "split_csv/1cls.csv"


class Visa(MvtecLayout):
    """Industrial objects, some images with several of them; masks hold indices of kinds of defect.

    A copy that its authors' program has repacked in MVTec's layout (`VisA_pytorch/1cls`) is read, too.
    """

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
    MARKS = ("test/bad",)
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
        """Whether a folder holds the official split and images, or repacked ones."""
        return _is_official(folder) or super().is_root(folder)

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """The rows of the official split, in its order; what is repacked in that of the folders."""
        if not _is_official(root):
            listing = super().list_files(root)
            for split, samples in listing.samples.items():
                listing.samples[split] = [_without_kind(sample) for sample in samples]
            return listing
        listing = Listing()
        with open(root / SPLIT_FILE, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                sample = _read_row(root, row)
                if not (root / row["image"]).is_file():
                    listing.issues.append(Issue("image_missing", row["image"]))
                    continue
                if sample.label and not sample.has_mask:
                    listing.issues.append(Issue("mask_missing", row["image"]))
                listing.add(row["split"], [sample])
        return listing


def _is_official(folder: pathlib.Path) -> bool:
    return (folder / SPLIT_FILE).is_file() and any(folder.glob("*/Data/Images"))


def _without_kind(sample: Sample) -> Sample:
    """A repacked sample: its folder tells no more than that it is anomalous."""
    return dataclasses.replace(sample, defect="") if sample.label else sample


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
