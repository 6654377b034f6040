"""The protocols of the papers as data: which dataset trains prompts for which, and the names of datasets.

Means are formed per category, then over the categories of a dataset, then over the datasets of a domain;
undefined values are excluded.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from zsad_jax.data.benchmarks.facts import DATASETS, Domain
from zsad_jax.utils.errors import UserError

Naming = Literal["published", "plain", "descriptive", "aaclip"]

DOMAINS: dict[Domain, str] = {"industrial": "Industrial", "medical": "Medical"}
DOMAIN_MEANS = {f"{domain}_mean": domain for domain in DOMAINS}  # key of the mean -> domain

INDUSTRIAL_7 = ("mvtec_ad", "visa", "mpdd", "btad", "ksdd", "dagm", "dtd_synthetic")
BRAIN = ("headct", "brainmri", "br35h")


class SplitName(NamedTuple):
    """A dataset in a name that may join several; split "" is the default."""

    key: str
    split: str = ""


class PaperProtocol(NamedTuple):
    """The datasets that a paper trains on and evaluates, named as `parse_name` reads them.

    Attributes:
      auxiliary: the dataset whose learned prompts serve all targets …
      auxiliary_for: … but these.
      targets: the datasets to evaluate, in the order of the paper's tables.
      stated_by: the method whose paper states this training, while its code, and so its numbers, have the usual
        one; "" for none.
    """

    auxiliary: str
    auxiliary_for: Mapping[str, str]
    targets: tuple[str, ...]
    stated_by: str = ""


def _common(*targets: str) -> PaperProtocol:
    """Returns the usual protocol: MVTec AD's test split trains for all others, VisA's for MVTec AD."""
    return PaperProtocol("mvtec_ad", {"mvtec_ad": "visa"}, targets)


_TIPSOMALY = (*INDUSTRIAL_7, *BRAIN, "isic", "cvc_colondb", "cvc_clinicdb", "tn3k")
_FAPROMPT = (
    *("mvtec_ad", "visa", "ksdd", "btad", "mpdd", "aitex", "dagm", "dtd_synthetic", "elpv"),
    *("brainmri", "headct", "lag", "br35h"),
    *("cvc_colondb", "cvc_clinicdb", "kvasir", "endo", "isic", "tn3k"),
)
_TPS = (
    *("mvtec_ad", "visa", "mpdd", "btad", *BRAIN),
    *("sd_saliency_900", "rsdds_113", "isic", "kvasir", "tn3k", "msd_lung"),
)

PROTOCOLS: dict[str, PaperProtocol] = {
    "common": _common("mvtec_ad", "visa"),
    "tipsomaly": _common(*_TIPSOMALY),
    "vip2clip": _common(*INDUSTRIAL_7, *BRAIN, "isic", "cvc_colondb", "cvc_clinicdb", "kvasir"),
    "tps": _common(*_TPS),
    # The released code reads the test split …
    "faprompt": _common(*_FAPROMPT),
    # … in its ablations without MVTec AD, so that one training serves all targets …
    "faprompt_ablations": _common(*_FAPROMPT[1:]),
    # … and the paper says that it trains on all images, train and test.
    "faprompt_full": PaperProtocol(
        "mvtec_ad:train+mvtec_ad:test",
        {"mvtec_ad": "visa:train+visa:test"},
        _FAPROMPT,
        stated_by="faprompt",
    ),
    # One polyp set is added to each industrial one, and serves where that is not a target. The targets are the
    # datasets that the published code links to, which are those of TIPSomaly's tables.
    "adaclip": PaperProtocol(
        "mvtec_ad+cvc_colondb",
        dict.fromkeys(("mvtec_ad", "cvc_colondb"), "visa+cvc_clinicdb"),
        _TIPSOMALY,
    ),
    # ViP2-CLIP's Table 9: one polyp set is added to the industrial one, the other for itself.
    "vip2clip_medical": PaperProtocol(
        "mvtec_ad+cvc_colondb",
        {"cvc_colondb": "visa+cvc_clinicdb"},
        (*BRAIN, "isic", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo"),
    ),
    # The datasets of all these papers, for the methods that they compare with.
    "compared": _common(*dict.fromkeys((*_FAPROMPT, *_TPS))),
    # TPS's Table 3, whose HeadCT and ISIC rows are of the sets that were trained on: not zero-shot, excluded.
    "tps_medical_image": PaperProtocol("headct", {}, ("brainmri", "br35h")),
    "tps_medical_pixel": PaperProtocol("isic", {}, ("kvasir", "tn3k", "msd_lung")),
}


def clean_class_name(name: str) -> str:
    """Returns a class name as words: "_" and "-" become spaces."""
    return name.replace("_", " ").replace("-", " ")


def prompt_name(category: str, *, dataset: str = "", naming: Naming = "published") -> str:
    """Returns the name of a category in prompts. Class names change scores visibly.

    Args:
      category: in the dataset's spelling ("metal_nut").
      dataset: its key ("mvtec_ad").
      naming: "published": as in the published code that most papers share (AnomalyCLIP, TIPSomaly), else plain;
        "plain": the category with "_" and "-" turned into spaces; "descriptive": a description if Bayes-PFL has
        one ("pcb1" becomes "printed circuit board"), else the published name; "aaclip": the same of AA-CLIP.

    Example:
      >>> prompt_name("metal_nut", dataset="mvtec_ad")
      'metal nut'
      >>> prompt_name("pcb1", dataset="visa", naming="descriptive")
      'printed circuit board'
    """
    plain = clean_class_name(category).strip()
    facts = DATASETS.get(dataset)
    if facts is None or naming == "plain":
        return plain
    # The published code names categories by hand; results depend on these words.
    published = _look_up(facts.prompt_names, category) or plain
    described = {"descriptive": facts.descriptive_names, "aaclip": facts.aaclip_names}
    return _look_up(described.get(naming, {}), category) or published


def parse_name(name: str) -> tuple[SplitName, ...]:
    """Returns the parts of a dataset's name: "mvtec_ad", "mvtec_ad:train", "mvtec_ad:train+mvtec_ad:test".

    Raises:
      UserError: a part is empty or a path.
    """
    parts = _split(name)
    for part in parts:
        check_name(part.key)
        check_name(":".join(filter(None, part)))  # a path may have a colon
    return parts


def training_parts(name: str) -> frozenset[SplitName]:
    """Returns the parts of a name in any order; the split that is usual for training is the test split."""
    return frozenset(
        part._replace(split="" if part.split == "test" else part.split) for part in parse_name(name)
    )


def check_name(key: str) -> None:
    """Rejects names of datasets that would act as paths, since files and folders are named after them.

    Raises:
      UserError: the name is empty, "." or "..", or has a separator.
    """
    if not key.strip() or key in (".", "..") or set(key) & set("/\\\0"):
        raise UserError(
            f"{key!r} is not a valid dataset name. Give a key, such as mvtec_ad or mvtec_ad:train+mvtec_ad:test"
            ', or a folder as {"folder": PATH, "name": NAME}.'
        )


def title(name: str) -> str:
    """Returns the title of a dataset in reports; a user's own folder keeps its name."""
    parts = _split(name)
    if not all(part.key in DATASETS for part in parts):
        return name
    return " + ".join(
        DATASETS[part.key].title + (f" ({part.split})" if part.split else "") for part in parts
    )


def _split(name: str) -> tuple[SplitName, ...]:
    return tuple(
        SplitName(*(piece.strip() for piece in one.split(":", 1))) for one in name.split("+")
    )


def _look_up(names: str | Mapping[str, str], category: str) -> str | None:
    return names if isinstance(names, str) else names.get(category)
