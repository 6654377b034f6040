import collections
import csv
import pathlib
import re

import numpy as np
import pytest

from zsad_jax.methods import METHODS
from zsad_jax.report import published
from zsad_jax.report.names import OTHER_METHODS
from zsad_jax.report.published import all_numbers, published_numbers

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "published" / "results.csv"


def test_reads_own_numbers_of_the_paper():
    numbers = published_numbers("tipsomaly", "mvtec_ad")
    assert {name: number.percent for name, number in numbers.items()} == {
        "image_auroc": 93.4,
        "image_ap": 96.1,
        "image_f1max": 92.9,
        "pixel_auroc": 90.9,
        "pixel_aupro": 84.0,
        "pixel_f1max": 43.8,
    }
    assert not any(number.doubt for number in numbers.values())


def test_reads_baseline_from_the_paper_that_prints_it():
    number = published_numbers("aprilgan", "btad")["pixel_auroc"]
    assert (number.percent, number.paper) == (60.8, "tipsomaly")
    assert "89" in number.doubt


def test_image_only_dataset_has_no_pixel_numbers():
    assert set(published_numbers("tipsomaly", "headct")) == {
        "image_auroc",
        "image_ap",
        "image_f1max",
    }


@pytest.mark.parametrize("key", [("tipsomaly", "synthetic_target"), ("nobody", "mvtec_ad")])
def test_unknown_method_or_dataset_has_no_numbers(key):
    assert published_numbers(*key) == {}
    assert published_numbers("tipsomaly", "mvtec_ad", "wing") == {}


@pytest.mark.parametrize(
    ("paper", "table", "dataset", "category", "fields", "main"),
    [
        ("vip2clip", "1", "visa", "mean", {}, True),
        ("vip2clip", "12", "visa", "mean", {}, False),  # repeats table 1
        ("vip2clip", "12", "visa", "candle", {"doubt": "suspicious: x"}, True),
        ("vip2clip", "8", "visa", "mean", {"full_shot": "full-shot; copied"}, False),
        ("faprompt", "1", "visa", "mean", {"setting": "variant: trained on medical data"}, False),
        ("faprompt", "17", "visa", "mean", {"setting": "ablation: base"}, False),
        ("faprompt", "3", "medical_mean", "mean", {}, True),  # the only table with its means
        ("faprompt", "4", "medical_mean", "mean", {}, False),
        ("tipsomaly", "poster", "medical_mean", "mean", {}, False),
    ],
)
def test_selects_main_results(paper, table, dataset, category, fields, main):
    place = (paper, table, "tps", dataset, category, "image_auroc")
    number = published.PublishedNumber(1.0, "1.0", *place, **fields)
    assert published.is_main(number) is main


def test_numbers_are_stored_as_printed():
    numbers = published.all_numbers()
    assert len(numbers) == 4249
    assert all(float(number.printed) == number.percent for number in numbers)
    assert {number.printed for number in numbers} >= {"100", "90", "0.0"}


# Members of the means of each paper, from the README of the collection.
INDUSTRIAL_7 = {"mvtec_ad", "visa", "mpdd", "btad", "ksdd", "dagm", "dtd_synthetic"}
BRAIN = {"headct", "brainmri", "br35h"}
POLYPS = {"cvc_colondb", "cvc_clinicdb"}
MEMBERS = [
    ("tipsomaly", None, INDUSTRIAL_7, INDUSTRIAL_7, BRAIN, {*POLYPS, "isic", "tn3k"}),
    ("tipsomaly", "poster", INDUSTRIAL_7, INDUSTRIAL_7, BRAIN, {*POLYPS, "isic", "tn3k"}),
    ("vip2clip", None, INDUSTRIAL_7, INDUSTRIAL_7, BRAIN, {*POLYPS, "isic", "kvasir"}),
    ("vip2clip", "9", set(), set(), BRAIN, {*POLYPS, "isic", "kvasir", "endo"}),
    (
        "faprompt",
        None,
        {*INDUSTRIAL_7, "aitex", "elpv"} - {"mvtec_ad"},
        {*INDUSTRIAL_7, "aitex"} - {"mvtec_ad"},
        {*BRAIN, "lag"},
        {*POLYPS, "kvasir", "endo", "isic", "tn3k"},
    ),
]


@pytest.mark.parametrize(
    ("paper", "table", "industrial_image", "industrial_pixel", "medical_image", "medical_pixel"),
    MEMBERS,
)
def test_members_of_published_means(
    paper, table, industrial_image, industrial_pixel, medical_image, medical_pixel
):
    def members(domain, metric):
        found = published.mean_members(paper, domain, metric, table)
        assert len(set(found)) == len(found)
        return set(found)

    assert members("industrial", "image_auroc") == industrial_image
    assert members("industrial", "pixel_aupro") == industrial_pixel
    assert members("medical", "image_ap") == medical_image
    assert members("medical", "pixel_auroc") == medical_pixel


def recompute(mean, by_method):
    """Returns the printed members of a printed mean: categories of a dataset, or datasets of a domain."""
    same = by_method[mean.paper, mean.metric, mean.method]
    if mean.dataset not in published.DOMAIN_MEANS:
        here = [n for n in same if (n.table, n.dataset) == (mean.table, mean.dataset)]
        return [n.percent for n in here if n.category != "mean"]
    if mean.table == "9":  # each dataset from the fine-tuning that does not use it
        chosen = [n for n in same if n.table == "9"]
    elif mean.setting:
        chosen = [n for n in same if n.setting == mean.setting]
    else:
        chosen = [n for n in same if n.category == "mean" and published.is_main(n)]
    of_dataset = {n.dataset: n.percent for n in chosen}
    domain = published.DOMAIN_MEANS[mean.dataset]
    members = published.mean_members(mean.paper, domain, mean.metric, mean.table)
    return [of_dataset[member] for member in members if member in of_dataset]


def test_printed_means_match_their_members_with_known_exceptions():
    checked, wrong = 0, []
    by_method = collections.defaultdict(list)
    for number in published.all_numbers():
        by_method[number.paper, number.metric, number.method].append(number)
    for number in published.all_numbers():
        if number.category != "mean" or number.table == "poster":
            continue
        values = recompute(number, by_method)
        if values:
            checked += 1
            if abs(float(np.mean(values)) - number.percent) > 0.15:
                wrong.append(number)
    assert (checked, len(wrong)) == (350, 16)
    assert all(number.doubt for number in wrong)


@pytest.mark.parametrize(
    ("method", "paper"), [("tps", "tps"), ("coop", "faprompt"), ("adaclip", "tipsomaly")]
)
def test_paper_of_each_method(method, paper):
    assert published.paper_of(method) == paper
    assert published.paper_of("nobody") is None


@pytest.mark.skipif(
    not SHARED.exists(), reason="the collection of published numbers is not available"
)
def test_package_data_matches_the_collection():
    """Compares with the collection, whose one column of notes is split into several columns here."""
    parts = ("ablation:", "variant:", "suspicious:", "full-shot", "printed ")
    with SHARED.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = published.all_numbers()
    for row, number in zip(rows, numbers, strict=True):
        kept = [number.setting, number.doubt, number.full_shot, number.reading]
        kept += [f"printed gain over best prior: {number.gain}"] if number.gain else []
        notes = re.split(f"; (?={'|'.join(parts)})", row.pop("note"))
        assert sorted(filter(None, kept)) == sorted(filter(None, notes))
        assert list(row.values()) == [
            *(number.paper, number.table, number.method, number.dataset, number.category),
            *number.metric.split("_", 1),
            number.printed,
        ]
    ablations = {number.setting: number.proposed for number in numbers if number.setting}
    assert ablations["ablation: base + CAP + DAP (full model)"]
    assert sum(ablations.values()) < len(ablations) / 2
    assert all(number.proposed for number in numbers if not number.setting)


def test_printed_methods_are_implemented_or_have_a_name():
    assert set(OTHER_METHODS) == {number.method for number in all_numbers()} - set(METHODS)
