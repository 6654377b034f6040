"""BTAD (Mishra et al., ISIE 2021): three products of beanTech; normal images are called `ok`."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.mvtec_layout import MvtecLayout


class Btad(MvtecLayout):
    """Body and surface defects of three industrial products; some masks have soft, grey edges."""

    name = "btad"
    HOMEPAGE = "https://avires.dimi.uniud.it/papers/btad/btad.zip"
    LICENCE = "for non-commercial use: CC BY-SA 4.0 or CC BY-NC-SA 4.0, its sources differ"
    ARCHIVES = (
        Archive(
            "btad.zip",
            about="1.2 GB",
            sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
        ),
    )
    TREE = "01/test/ko/0000.bmp"
    NORMAL = "ok"
    MARKS = ("test/ko",)
    COUNTS = {  # noqa: RUF012 - a constant, as tensorflow-datasets has them
        "train": {"01": (400, 0), "02": (399, 0), "03": (1000, 0)},
        "test": {"01": (21, 49), "02": (30, 200), "03": (400, 41)},
    }
