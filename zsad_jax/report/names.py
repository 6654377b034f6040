"""Names of datasets, methods, metrics and labels as reports show them."""

import re

from zsad_jax.data import protocols
from zsad_jax.methods import METHODS, config_class
from zsad_jax.utils.images import printable

LABELS = ("normal", "anomalous")

# Methods that papers compare with and that are not implemented.
OTHER_METHODS = {
    "patchcore": "PatchCore",
    "rd4ad": "RD4AD",
}

METRICS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1max": "Pixel F1-max",
    "pixel_aupro": "AUPRO",
    "pixel_aupro_200step": "AUPRO (200 steps)",
}
# Below the heading of the level.
SHORT_METRICS = {key: re.sub("^(Image|Pixel) ", "", name) for key, name in METRICS.items()}
PAPER_METRICS = METRICS | {"pixel_aupro": "Pixel AUPRO"}  # papers have one, from 200 thresholds
METRIC_GROUPS = {"image": "Image level", "pixel": "Pixel level"}

COLUMNS = {  # what was run, in the order of results.json
    "method": "Method",
    "variant": "Variant",
    "backbone": "Backbone",
    "auxiliary": "Trained on",
    "checkpoint": "Prompts",
    "seed": "Seed",
    "epoch": "Epoch",
    "class_name": "Class name",
    "prompt_family": "Prompt family",
    "image_size": "Image size",
    "sigma": "Sigma",
    "image_score": "Image score",
    "shots": "Shots",
}


def dataset_name(key: str) -> str:
    """Returns a dataset's name ("industrial_mean": a mean); the key itself for the user's own folder."""
    domain = protocols.DOMAIN_MEANS.get(key)
    return f"{protocols.DOMAINS[domain]} mean" if domain else printable(protocols.title(key))


def method_name(key: str) -> str:
    """Returns the method's usual spelling."""
    return config_class(key).title if key in METHODS else OTHER_METHODS.get(key, key)


def category_name(key: str) -> str:
    """Returns a category as words ("metal_nut" becomes "metal nut")."""
    return printable(key.replace("_", " "))
