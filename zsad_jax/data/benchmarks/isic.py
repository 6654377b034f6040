"""ISIC 2016 (Gutman et al., 2016): lesions of the skin, the test images of part 1."""

from zsad_jax.data.benchmarks.base import Archive
from zsad_jax.data.benchmarks.paired_folders import FolderPair, PairedFolders

URL = "https://isic-challenge-data.s3.amazonaws.com/2016"
DATA, GROUND_TRUTH = "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"
# AnomalyCLIP's copy has the images in `test`, a folder deeper.
PAIR: FolderPair = ((DATA, "test"), (GROUND_TRUTH,))


class Isic(PairedFolders):
    """Dermoscopy, a lesion in every image. Images are large."""

    name = "isic"
    HOMEPAGE = "https://challenge.isic-archive.com/data/#2016"
    LICENCE = "CC0"
    ARCHIVES = (
        Archive(
            f"{DATA}.zip",
            about="379 images",
            md5="efebcaeaae751007401a40a60d391f93",
            url=f"{URL}/{DATA}.zip",
        ),
        Archive(
            f"{GROUND_TRUTH}.zip",
            about="379 masks",
            md5="492a7711a2e19b96114cab6c96bd1ad5",
            url=f"{URL}/{GROUND_TRUTH}.zip",
        ),
    )
    TREE = f"{DATA}/ISIC_0000003.jpg and {GROUND_TRUTH}/ISIC_0000003_Segmentation.png"
    FOLDERS = {"test": PAIR}  # noqa: RUF012 - a constant
    MASK_SUFFIX = "_Segmentation"
    DEFECT = "lesion"
    # What else the challenge consists of.
    LEFT_OUT = ("ISBI2016_ISIC_Part1_Training*", "ISBI2016_ISIC_Part[23]*")
    COUNTS = {"test": {"isic": (0, 379)}}  # noqa: RUF012 - a constant
