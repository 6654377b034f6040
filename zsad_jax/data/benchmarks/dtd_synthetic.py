"""DTD-Synthetic (Aota et al., WACV 2023): textures with synthetic defects, in MVTec's layout."""

from zsad_jax.data.benchmarks.base import ALL, Archive
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout


class DtdSynthetic(MvtecLayout):
    """Textures of the Describable Textures Dataset, turned and cut, with drawn defects and their masks."""

    name = "dtd_synthetic"
    HOMEPAGE = "https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1"
    LICENCE = "no licence stated; made from the Describable Textures Dataset, which is for research"
    ARCHIVES = (Archive("DTD-Synthetic", about="a folder"),)
    TERMS = "there is no direct link"
    TREE = "Woven_001/test/bad/000.png"
    MARKS = ("test",)
    CATEGORIES = (
        "Blotchy_099",
        "Fibrous_183",
        "Marbled_078",
        "Matted_069",
        "Mesh_114",
        "Perforated_037",
        "Stratified_154",
        "Woven_001",
        "Woven_068",
        "Woven_104",
        "Woven_125",
        "Woven_127",
    )
    # No more than the sums is published.
    COUNTS = {"test": {ALL: (357, 947)} | dict.fromkeys(CATEGORIES)}  # noqa: RUF012 - a constant
