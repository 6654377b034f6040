"""COVID-19 Radiography Database (Chowdhury et al., IEEE Access 2020): chest X-rays."""

import pathlib

from zsad_jax.data.builders.base import Archive, Benchmark
from zsad_jax.data.builders.layouts import Listing
from zsad_jax.data.builders.two_folders import find_images, list_two_folders

NORMAL, COVID = "normal", ("covid", "covid-19", "covid19")


class Covid19(Benchmark):
    """Chest X-rays, normal and with COVID-19; no masks, for those that come with them are of the lungs.

    The published counts are those of the first upload; later ones hold more images. Other diseases of the
    lungs (Lung_Opacity, Viral Pneumonia) are no part of the benchmark.
    """

    name = "covid19"
    HOMEPAGE = "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database"
    LICENCE = "for research, as stated there"
    ARCHIVES = (Archive("covid19-radiography-database.zip", about="0.8 GB"),)
    TREE = "COVID/images/COVID-1.png and Normal/images/Normal-1.png"
    TERMS = "Kaggle asks for an account"
    COUNTS = {"test": {"covid19": (1341, 219)}}  # noqa: RUF012 - a constant, as tensorflow-datasets has them

    @classmethod
    def is_root(cls, folder: pathlib.Path) -> bool:
        """Whether a folder holds both kinds of images."""
        return bool(find_images(folder, NORMAL) and find_images(folder, *COVID))

    @classmethod
    def list_files(cls, root: pathlib.Path) -> Listing:
        """All images; the folder is the label."""
        listing = Listing()
        folders = find_images(root, NORMAL), find_images(root, *COVID)
        for samples in list_two_folders(root, *folders, category=cls.name, defect="COVID-19"):
            listing.add("test", samples)
        return listing
