"""COVID-19 Radiography Database (Chowdhury et al., IEEE Access 2020): chest X-rays."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.two_folders import TwoFolders


class Covid19(TwoFolders):
    """Chest X-rays, normal and with COVID-19; no masks, for those that come with them are of the lungs.

    The published counts are those of the first upload; later ones hold more images. Other diseases of the
    lungs (Lung_Opacity, Viral Pneumonia) are no part of the benchmark.
    """

    name = "covid19"
    HOMEPAGE = "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database"
    LICENCE = "for research, as stated there"
    ARCHIVES = (Archive("covid19-radiography-database.zip", about="0.8 GB"),)
    TREE = "COVID/images/COVID-1.png and Normal/images/Normal-1.png"
    NORMAL, ANOMALOUS = ("normal",), ("covid", "covid-19", "covid19")
    DEFECT = "COVID-19"
    LEFT_OUT = ("lung?opacity", "viral?pneumonia", "*/masks")
    TERMS = "Kaggle asks for an account"
    COUNTS = {"test": {"covid19": (1341, 219)}}  # noqa: RUF012 - a constant, as tensorflow-datasets has them
