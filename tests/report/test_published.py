import csv
import importlib.resources
import pathlib

import pytest

from zsad_jax.report import published_numbers
from zsad_jax.report.published import _is_main_result

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "published" / "results.csv"


def test_numbers_of_the_papers_own_row():
    numbers = published_numbers("tipsomaly", "mvtec_ad")
    assert {name: number.percent for name, number in numbers.items()} == {
        "image_auroc": 93.4,
        "image_ap": 96.1,
        "image_f1max": 92.9,
        "pixel_auroc": 90.9,
        "pixel_aupro": 84.0,
        "pixel_f1max": 43.8,
    }
    assert not any(number.suspicious for number in numbers.values())


def test_a_baseline_is_read_from_the_paper_that_prints_it():
    number = published_numbers("aprilgan", "btad")["pixel_auroc"]
    assert (number.percent, number.paper) == (60.8, "tipsomaly")
    assert number.suspicious
    assert "89" in number.note


def test_image_only_dataset_has_no_pixel_numbers():
    assert set(published_numbers("tipsomaly", "headct")) == {
        "image_auroc",
        "image_ap",
        "image_f1max",
    }


@pytest.mark.parametrize("key", [("tipsomaly", "synthetic_target"), ("nobody", "mvtec_ad")])
def test_nothing_is_made_up(key):
    assert published_numbers(*key) == {}
    assert published_numbers("tipsomaly", "mvtec_ad", "bottle") == {}


@pytest.mark.parametrize(
    ("paper", "table", "category", "note", "main"),
    [
        ("vip2clip", "1", "mean", "", True),
        ("vip2clip", "12", "mean", "", False),  # repeats table 1
        ("vip2clip", "12", "candle", "suspicious: x", True),
        ("faprompt", "1", "mean", "variant: trained on medical data", False),
        ("faprompt", "17", "mean", "ablation: base", False),
        ("tipsomaly", "poster", "mean", "", False),
    ],
)
def test_only_main_results_count(paper, table, category, note, main):
    assert (
        _is_main_result({"paper": paper, "table": table, "category": category, "note": note})
        is main
    )


@pytest.mark.skipif(
    not SHARED.exists(), reason="the collection of published numbers is not at hand"
)
def test_package_data_equals_the_collection():
    shipped = importlib.resources.files("zsad_jax.report") / "assets" / "published.csv"
    with SHARED.open(encoding="utf-8") as file:
        collection = [row for row in csv.DictReader(file) if row["paper"] == "tipsomaly"]
    with shipped.open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == collection
