"""RSDDs-113 (Niu et al., 2021): photographs of rails with defects of the surface."""

import pathlib

from zsad_jax.data.benchmarks.base import Archive, Benchmark
from zsad_jax.data.benchmarks.layouts import Listing, find_folder, list_pairs


class Rsdds113(Benchmark):
    """Rails with defects, a mask for each image; no normal images."""

    name = "rsdds_113"
    HOMEPAGE = "https://github.com/neu-rail-rsdds/rsdds"
    LICENCE = "no licence stated"
    ARCHIVES = (
        Archive("2D_Image.zip.001", about="the first of nine parts"),
        Archive("Ground Truth.zip", about="113 masks"),
    )
    TERMS = "it is in parts and has a password"
    UNPACK = '7z x -pneurail 2D_Image.zip.001 && 7z x -pneurail "Ground Truth.zip"'
    TREE = "2D_Image/INPUT_IMG/1.png and Ground Truth/1.png"
    LEFT_OUT = ("Depthmap*",)
    COUNTS = {"test": {"rsdds_113": (0, 113)}}  # noqa: RUF012 - a constant

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds images and masks."""
        return bool(_images(folder) and find_folder(folder, "Ground Truth"))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images with their masks."""
        listing = Listing()
        images = _images(root) or root / "2D_Image"
        masks = find_folder(root, "Ground Truth") or root / "Ground Truth"
        listing.add("test", list_pairs(root, images, masks, listing.issues, category=cls.name))
        return listing


def _images(root: pathlib.Path) -> pathlib.Path | None:
    """The folder of images, which the archive of the depth maps does not have."""
    return find_folder(find_folder(root, "2D_Image") or root, "INPUT_IMG")
