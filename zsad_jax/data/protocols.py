"""The protocol of the papers, as data: what each benchmark can tell, what trains for what, and all names.

Means are formed per category, then over the categories of a dataset, then over the datasets of a domain; what
is undefined is left out, with a word.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

from zsad_jax.utils.errors import UserError

Level = Literal["image", "pixel"]
Domain = Literal["industrial", "medical", ""]
Naming = Literal["published", "plain", "descriptive"]

BOTH: tuple[Level, ...] = ("image", "pixel")
IMAGE: tuple[Level, ...] = ("image",)  # no masks
PIXEL: tuple[Level, ...] = ("pixel",)  # no normal images


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What must be known of a dataset besides its files.

    Attributes:
      title: its usual spelling.
      domain: the mean that it belongs to; "" for none.
      levels: at which metrics are defined.
      called: what its categories are called in the prompts of the published code where that is not the plain
        rule: one name for all, or some by category.
      described: other names that some published code uses (Bayes-PFL), by category or for all.
      folder: of the prepared copy that circulates with a meta.json (linked from AdaCLIP's README).
      published: numbers of (normal, anomalous) images of the whole test split; None where none are published.
      num_categories: of the whole test split; None where it has but one.
    """

    title: str
    domain: Domain = "industrial"
    levels: tuple[Level, ...] = BOTH
    called: str | Mapping[str, str] = dataclasses.field(default_factory=dict)
    described: str | Mapping[str, str] = dataclasses.field(default_factory=dict)
    folder: str = ""
    published: tuple[int, int] | None = None
    num_categories: int | None = None


DATASETS: dict[str, About] = {
    "mvtec_ad": About(
        title="MVTec AD", folder="mvtec_anomaly_detection", published=(467, 1258), num_categories=15
    ),
    "visa": About(
        title="VisA",
        described={
            "chewinggum": "chewing gum",
            "macaroni1": "macaroni",
            "macaroni2": "macaroni",
            "pcb1": "printed circuit board",
            "pcb2": "printed circuit board",
            "pcb3": "printed circuit board",
            "pcb4": "printed circuit board",
        },
        folder="VisA_20220922",
        published=(962, 1200),
        num_categories=12,
    ),
    "mpdd": About(title="MPDD", folder="MPDD", published=(176, 282), num_categories=6),
    "btad": About(
        title="BTAD",
        described={"01": "metal1", "02": "wood", "03": "metal2"},
        folder="BTech_Dataset_transformed",
        published=(451, 290),
        num_categories=3,
    ),
    "ksdd": About(
        title="KolektorSDD",
        called="electrical commutators",
        folder="SDD_anomaly_detection",
        published=(286, 54),
    ),
    "dagm": About(
        title="DAGM 2007",
        folder="DAGM_anomaly_detection",
        published=(6996, 1054),
        num_categories=10,
    ),
    "dtd_synthetic": About(
        title="DTD-Synthetic", folder="DTD-Synthetic", published=(357, 947), num_categories=12
    ),
    "aitex": About(title="AITEX", called="AITEX", published=(564, 183)),
    "elpv": About(title="ELPV", levels=IMAGE, called="elpv", published=(377, 715)),
    "sd_saliency_900": About(
        title="SD-saliency-900", levels=PIXEL, called="iron", published=(0, 900)
    ),
    "rsdds_113": About(title="RSDDs-113", levels=PIXEL, called="rail", published=(0, 113)),
    "headct": About(
        title="HeadCT",
        domain="medical",
        levels=IMAGE,
        called="brain",
        described="brain ct",
        folder="HeadCT_anomaly_detection",
        published=(100, 100),
    ),
    "brainmri": About(
        title="BrainMRI",
        domain="medical",
        levels=IMAGE,
        called="brain",
        folder="BrainMRI",
        published=(98, 155),
    ),
    "br35h": About(
        title="Br35H",
        domain="medical",
        levels=IMAGE,
        called="brain",
        folder="Br35h_anomaly_detection",
        published=(1500, 1500),
    ),
    "lag": About(title="LAG", domain="medical", levels=IMAGE, called="LAG", published=(786, 1711)),
    "cvc_colondb": About(
        title="CVC-ColonDB",
        domain="medical",
        levels=PIXEL,
        called="colon",
        folder="CVC-ColonDB",
        published=(0, 380),
    ),
    "cvc_clinicdb": About(
        title="CVC-ClinicDB",
        domain="medical",
        levels=PIXEL,
        called="colon",
        folder="CVC-ClinicDB",
        published=(0, 612),
    ),
    "kvasir": About(
        title="Kvasir-SEG", domain="medical", levels=PIXEL, called="colon", published=(0, 1000)
    ),
    "endo": About(
        title="EndoTect 2020", domain="medical", levels=PIXEL, called="colon", published=(0, 200)
    ),
    "isic": About(
        title="ISIC 2016",
        domain="medical",
        levels=PIXEL,
        called="skin",
        folder="ISIC",
        published=(0, 379),
    ),
    "tn3k": About(
        title="TN3K",
        domain="medical",
        levels=PIXEL,
        called="thyroid",
        folder="TN3K",
        published=(0, 614),
    ),
    "msd_lung": About(title="MSD lung", domain="medical", called="lung", num_categories=63),
    "covid19": About(
        title="COVID-19", domain="medical", levels=IMAGE, called="chest", published=(1341, 219)
    ),
    "mvtec_ad2": About(title="MVTec AD 2", published=(379, 705), num_categories=8),
    "mvtec_loco": About(title="MVTec LOCO", published=(575, 993), num_categories=5),
    "real_iad": About(title="Real-IAD", published=(63_256, 51_329), num_categories=30),
    "goodsad": About(title="GoodsAD", published=(1328, 1660), num_categories=6),
    "synthetic_aux": About(title="Synthetic (auxiliary)", domain=""),
    "synthetic_target": About(title="Synthetic (target)", domain=""),
}

DOMAINS: dict[Domain, str] = {"industrial": "Industrial", "medical": "Medical"}

INDUSTRIAL_7 = ("mvtec_ad", "visa", "mpdd", "btad", "ksdd", "dagm", "dtd_synthetic")
BRAIN = ("headct", "brainmri", "br35h")


class Part(NamedTuple):
    """A dataset in the name of one that may be joined of several; split "" is the usual one."""

    key: str
    split: str = ""


class Protocol(NamedTuple):
    """What a paper trains on and evaluates. Datasets are named as `parse_name` reads them.

    Attributes:
      auxiliary: whose learned prompts serve every target …
      auxiliary_for: … but these.
      targets: what is evaluated, in the order of the paper's tables.
    """

    auxiliary: str
    auxiliary_for: Mapping[str, str]
    targets: tuple[str, ...]


def _common(*targets: str) -> Protocol:
    """MVTec AD's test split trains for all others, VisA's for MVTec AD."""
    return Protocol("mvtec_ad", {"mvtec_ad": "visa"}, targets)


_TIPSOMALY = (*INDUSTRIAL_7, *BRAIN, "isic", "cvc_colondb", "cvc_clinicdb", "tn3k")
_FAPROMPT = (
    *("mvtec_ad", "visa", "ksdd", "btad", "mpdd", "aitex", "dagm", "dtd_synthetic", "elpv"),
    *("brainmri", "headct", "lag", "br35h"),
    *("cvc_colondb", "cvc_clinicdb", "kvasir", "endo", "isic", "tn3k"),
)

PROTOCOLS: dict[str, Protocol] = {
    "common": _common("mvtec_ad", "visa"),
    "tipsomaly": _common(*_TIPSOMALY),
    "vip2clip": _common(*INDUSTRIAL_7, *BRAIN, "isic", "cvc_colondb", "cvc_clinicdb", "kvasir"),
    "tps": _common(
        *("mvtec_ad", "visa", "mpdd", "btad", *BRAIN),
        *("sd_saliency_900", "rsdds_113", "isic", "kvasir", "tn3k", "msd_lung"),
    ),
    # The released code reads the test split …
    "faprompt": _common(*_FAPROMPT),
    # … and the paper says that it trains on all images, train and test.
    "faprompt_full": Protocol(
        "mvtec_ad:train+mvtec_ad:test", {"mvtec_ad": "visa:train+visa:test"}, _FAPROMPT
    ),
    # ViP2-CLIP's Table 9: one polyp set is added to the industrial one, the other for itself.
    "vip2clip_medical": Protocol(
        "mvtec_ad+cvc_colondb",
        {"cvc_colondb": "visa+cvc_clinicdb"},
        (*BRAIN, "isic", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo"),
    ),
    # TPS's Table 3, whose HeadCT and ISIC rows are of the sets that were trained on: not zero-shot, left out.
    "tps_medical_image": Protocol("headct", {}, ("brainmri", "br35h")),
    "tps_medical_pixel": Protocol("isic", {}, ("kvasir", "tn3k", "msd_lung")),
}


def prompt_name(category: str, *, dataset: str = "", naming: Naming = "published") -> str:
    """Says how a category is called in prompts. Class names change scores visibly.

    Args:
      category: the dataset's own spelling ("metal_nut").
      dataset: its key ("mvtec_ad").
      naming: "published": as the published code that most papers share (AnomalyCLIP, TIPSomaly); "plain":
        the category itself; "descriptive": a describing name where one is known ("pcb1" becomes "printed
        circuit board"), else the published one.

    Returns:
      The name; without a special one the category with "_" and "-" turned into spaces.
    """
    plain = category.replace("_", " ").replace("-", " ").strip()
    about = DATASETS.get(dataset)
    if about is None or naming == "plain":
        return plain
    called = _look_up(about.called, category) or plain
    return _look_up(about.described, category) or called if naming == "descriptive" else called


def parse_name(name: str) -> tuple[Part, ...]:
    """The parts of a dataset's name: "mvtec_ad", "mvtec_ad:train", "mvtec_ad:train+mvtec_ad:test".

    Raises:
      UserError: a part is empty or a path.
    """
    parts = _split(name)
    for part in parts:
        check_name(part.key)
    return parts


def check_name(key: str) -> None:
    """Rejects names of datasets that would act as paths: files and folders are named after them.

    Raises:
      UserError: the name is empty, "." or "..", or has a separator.
    """
    if not key.strip() or key in (".", "..") or set(key) & set("/\\\0"):
        raise UserError(
            f"{key!r} is not a name of a dataset. Give a key such as mvtec_ad, or mvtec_ad:train+mvtec_ad:test;"
            ' a folder is given as {"folder": PATH}, with "name": NAME to call it something.'
        )


def title(name: str) -> str:
    """What a dataset is called in front of people; a folder of the user's keeps its name."""
    parts = _split(name)
    if not all(part.key in DATASETS for part in parts):
        return name
    return " + ".join(
        DATASETS[part.key].title + (f" ({part.split})" if part.split else "") for part in parts
    )


def _split(name: str) -> tuple[Part, ...]:
    return tuple(Part(*(piece.strip() for piece in one.split(":", 1))) for one in name.split("+"))


def _look_up(names: str | Mapping[str, str], category: str) -> str | None:
    return names if isinstance(names, str) else names.get(category)
