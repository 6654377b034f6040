"""The setting of results, and which published numbers are of the same one."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from zsad_jax.data.protocols import PROTOCOLS, Part, Protocol, parse_name
from zsad_jax.methods import METHODS, config_class
from zsad_jax.methods.shared.recipes import UNLIKE_PAPER, recipe_of
from zsad_jax.report import names
from zsad_jax.report.rows import Row

USUAL = "common"  # MVTec AD trains for all others and VisA for it, as in the papers' main results
_FULL = "faprompt_full"
_VIP2CLIP, _TPS_IMAGE, _TPS_PIXEL = "vip2clip_medical", "tps_medical_image", "tps_medical_pixel"
_PROTOCOLS = (USUAL, _FULL, _VIP2CLIP, _TPS_IMAGE, _TPS_PIXEL)

# Which numbers of a paper are of another training, by paper and training: their settings.
SETTINGS = {
    ("vip2clip", _VIP2CLIP): (
        "variant: fine-tuned on MVTec AD and CVC-ColonDB",
        "variant: fine-tuned on VisA and CVC-ClinicDB",
        "variant: fine-tuned on industrial plus medical auxiliary data",
    ),
    ("tps", _TPS_IMAGE): ("variant: trained on medical data (HeadCT)",),
    ("tps", _TPS_PIXEL): ("variant: trained on medical data (ISIC)",),
}


def training_of(row: Row) -> str:
    """The protocol by which a result's prompts were trained; what they were trained on where it is none.

    Nothing learned is the usual training: it is what is published of such a method.
    """
    if not row["auxiliary"]:
        return USUAL
    parts = _parts(row["auxiliary"])
    for key in _PROTOCOLS:
        if parts == _parts(_auxiliary(PROTOCOLS[key], row)):
            return key
    return str(row["auxiliary"])


def is_usual(row: Row) -> bool:
    """Whether a result is of the training that a paper's main numbers stand for.

    FAPrompt's paper trains on all images, its code on the test split, and both count.
    """
    training = training_of(row)
    return training == USUAL or (training == _FULL and row["method"] == "faprompt")


def describe_setting(row: Row, run: Mapping[str, Any]) -> str:
    """Returns what differs from the published setting, apart from the training set; "" where nothing does."""
    if row["method"] not in METHODS:
        return ""
    recipe = recipe_of(row["method"])
    fields = dataclasses.fields(config_class(row["method"]))
    options = {field.name: field.default for field in fields}
    options |= recipe.method_for.get(row["dataset"], {})
    published = {"variant": "", **{key: options.get(key) for key in ("prompt_family", "sigma")}}
    published |= {"backbone": recipe.backbone["name"], "image_size": recipe.backbone["image_size"]}
    published["image_score"] = recipe.image_score or row["image_score"]
    differs = {names.COLUMNS[key].lower(): (row[key], value) for key, value in published.items()}
    differs |= run.get(UNLIKE_PAPER, {})
    words = [
        f"{key} {ours} (the paper: {'default' if theirs in ('', None) else theirs})"
        for key, (ours, theirs) in differs.items()
        if ours != theirs
    ]
    return f"{names.method_name(row['method'])}: {', '.join(words)}." if words else ""


def tell_training(rows: Iterable[Row]) -> list[str]:
    """A sentence for each other training than the usual among some results."""
    told = {
        f"Trained on {names.dataset_name(row['auxiliary'])}, the paper's on"
        f" {names.dataset_name(_auxiliary(PROTOCOLS[USUAL], row))}.": None
        for row in rows
        if not is_usual(row)
    }
    return list(told)


def describe_training(rows: Iterable[Row]) -> str:
    """What the prompts of some results were trained on; "" where nothing was learned."""
    auxiliaries = dict.fromkeys(row["auxiliary"] for row in rows if row["auxiliary"])
    told = " or ".join(map(names.dataset_name, auxiliaries))
    return f"trained on {told}" if told else ""


def _auxiliary(rules: Protocol, row: Row) -> str:
    return rules.auxiliary_for.get(row["dataset"], rules.auxiliary)


def _parts(name: str) -> frozenset[Part]:
    """The parts of a name in any order; the split that is usual for training is the test split."""
    return frozenset(
        part._replace(split="" if part.split == "test" else part.split) for part in parse_name(name)
    )
