"""Kvasir-SEG (Jha et al., MMM 2020): polyps in the colon."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.paired_folders import PairedFolders


class Kvasir(PairedFolders):
    """Colonoscopy, a polyp in every image. Masks are JPEGs: around a polyp they have a rim of noise."""

    name = "kvasir"
    HOMEPAGE = "https://datasets.simula.no/kvasir-seg"
    LICENCE = "research and education only"
    ARCHIVES = (
        Archive(
            "kvasir-seg.zip",
            about="46 MB",
            sha256="03b30e21d584e04facf49397a2576738fd626815771afbbf788f74a7153478f7",
            url="https://datasets.simula.no/downloads/kvasir-seg.zip",
            size=46_227_172,
        ),
    )
    TREE = "Kvasir-SEG/images/cju0qkwl35piu0993l0dewei2.jpg and Kvasir-SEG/masks"
    CALLED = r"kvasir([-_ ]?seg.*)?"
    DEFECT = "polyp"
    COUNTS = {"test": {"kvasir": (0, 1000)}}  # noqa: RUF012 - a constant
