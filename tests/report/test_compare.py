import pytest

from zsad_jax.data.protocols import PROTOCOLS
from zsad_jax.report.compare import (
    WITHOUT_MASK,
    Deviation,
    find_deviations,
    is_usual,
    training_of,
    unlike_paper,
    words_on,
)
from zsad_jax.report.published import all_numbers


def whole(dataset, words):
    """Returns a deviation of a dataset at image and pixel level."""
    return (Deviation(dataset, "images", ("image", "pixel"), words),)


def test_complete_and_unpublished_datasets_do_not_deviate(make_row):
    rows = [make_row(key) for key in ("mvtec_ad", "isic", "synthetic_target", "my_parts")]
    rows += [make_row("msd_lung"), make_row("headct", "headct"), make_row("headct")]
    rows += [make_row("synthetic_target", name) for name in ("gear", "ring")]
    rows += [make_row("btad", name) for name in ("01", "02", "03", "mean")]
    assert find_deviations(rows) == ()


@pytest.mark.parametrize(
    ("dataset", "n_images", "n_anomalous", "words"),
    [
        ("ksdd", 18, 10, "KolektorSDD: 18 of 340 images were evaluated."),
        ("ksdd", 339, 54, "KolektorSDD: 339 of 340 images were evaluated."),
        ("ksdd", 400, 54, "KolektorSDD: 400 images instead of 340 were evaluated."),
        ("ksdd", 340, 50, "KolektorSDD: 50 of 54 anomalous images were evaluated."),
        ("cvc_colondb", 8, 8, "CVC-ColonDB: 8 of 380 images were evaluated."),
    ],
)
def test_other_number_of_images_is_a_deviation(make_row, dataset, n_images, n_anomalous, words):
    row = make_row(dataset, n_images=n_images, n_anomalous=n_anomalous)
    assert find_deviations([row]) == whole(dataset, words)


def test_other_number_of_categories_is_a_deviation(make_row):
    rows = [make_row("btad", name) for name in ("01", "03", "mean")]
    assert find_deviations(rows) == whole("btad", "BTAD: 2 of 3 categories were evaluated.")
    rows[-1]["n_images"] = 511
    assert find_deviations(rows) == whole(
        "btad", "BTAD: 2 of 3 categories, 511 of 741 images were evaluated."
    )
    rows = [make_row("msd_lung", name) for name in ("lung_001", "lung_003", "mean")]
    assert find_deviations(rows) == whole(
        "msd_lung", "MSD lung: 2 of 63 categories were evaluated."
    )
    rows = [make_row("btad", name) for name in ("01", "02", "03", "04", "mean")]
    assert find_deviations(rows) == whole("btad", "BTAD: 4 categories instead of 3 were evaluated.")


def test_missing_masks_affect_pixel_metrics_only(make_row):
    rows = [make_row("rsdds_113"), make_row("visa"), make_row("headct"), make_row("my_parts")]
    counts = {"rsdds_113": 53, "headct": 100, "my_parts": 2}
    found = find_deviations(rows, {WITHOUT_MASK: counts})
    words = "RSDDs-113: 53 of 113 anomalous images have no usable mask."
    assert found == (Deviation("rsdds_113", "images", ("pixel",), words),)
    assert words_on(found, ["rsdds_113"], "pixel_aupro") == [words]
    assert words_on(found, ["rsdds_113"], "image_auroc") == []
    rows[0] |= {"n_images": 60, "n_anomalous": 60}
    found = find_deviations(rows, {WITHOUT_MASK: {"rsdds_113": 7}})
    evaluated = "RSDDs-113: 60 of 113 images were evaluated."
    assert words_on(found, ["rsdds_113"], "image_auroc") == [evaluated]
    missing = "RSDDs-113: 7 of 60 anomalous images have no usable mask."
    assert words_on(found, ["rsdds_113"]) == [evaluated, missing]
    assert words_on(found, ["visa"]) == []


@pytest.mark.parametrize(
    ("dataset", "auxiliary", "training"),
    [
        ("headct", "mvtec_ad", "common"),
        ("headct", "mvtec_ad:test", "common"),
        ("mvtec_ad", "visa", "common"),
        ("headct", None, "common"),
        ("headct", "visa", "visa"),
        ("visa", "mvtec_ad:train", "mvtec_ad:train"),
        ("headct", "mvtec_ad:train+mvtec_ad:test", "faprompt_full"),
        ("headct", "mvtec_ad + mvtec_ad:train", "faprompt_full"),
        ("mvtec_ad", "visa:train+visa:test", "faprompt_full"),
        ("headct", "mvtec_ad+cvc_colondb", "vip2clip_medical"),
        ("cvc_colondb", "visa+cvc_clinicdb", "vip2clip_medical"),
        ("headct", "visa+cvc_clinicdb", "visa+cvc_clinicdb"),
        ("brainmri", "headct", "tps_medical_image"),
        ("kvasir", "isic", "tps_medical_pixel"),
        ("headct", "synthetic_aux", "synthetic_aux"),
    ],
)
def test_training_has_one_name_for_all_datasets(make_row, dataset, auxiliary, training):
    assert training_of(make_row(dataset, auxiliary=auxiliary)) == training


@pytest.mark.parametrize(
    ("fields", "usual"),
    [
        ({}, True),
        ({"auxiliary": None}, True),
        ({"auxiliary": "synthetic_aux"}, False),
        ({"auxiliary": "mvtec_ad:train+mvtec_ad:test"}, False),
        ({"auxiliary": "mvtec_ad:train+mvtec_ad:test", "method": "faprompt"}, True),
        ({"auxiliary": "headct"}, False),
    ],
)
def test_recognizes_training_of_the_papers_main_numbers(make_row, fields, usual):
    assert is_usual(make_row("visa", **fields)) == usual


def test_references_are_another_setting_than_the_published_one(make_row):
    row = make_row("visa", method="tipsomaly")
    assert "shots" not in "".join(words_on(find_deviations([row]), ["visa"]))
    found = find_deviations([{**row, "shots": 4}])
    assert "shots 4 (the paper: 0)" in "".join(words_on(found, ["visa"]))


def test_other_training_is_a_deviation(make_row):
    rows = [make_row(key, auxiliary="mpdd") for key in ("mvtec_ad", "visa", "headct")]
    found = find_deviations([*rows, make_row("btad")])
    assert {one.kind for one in found} == {"training"}
    assert words_on(found, ["mvtec_ad", "visa", "headct", "btad"]) == [
        "Trained on MPDD; the paper trained on VisA.",
        "Trained on MPDD; the paper trained on MVTec AD.",
    ]


def test_published_settings_of_other_trainings_are_protocols():
    printed = {
        n.setting: n.training
        for n in all_numbers()
        if "trained on" in n.setting or "fine-tuned" in n.setting
    }
    usual = [setting for setting, training in printed.items() if training == "common"]
    assert usual == ["variant: trained on industrial data (the default)"]
    assert len(printed) == 6
    assert set(printed.values()) <= set(PROTOCOLS)


def test_compares_only_given_settings():
    assert unlike_paper("tps", "", {"epochs": 15, "backbone": "clip-vit-l14-336"}) == {}
    assert unlike_paper("tps", "", {"epochs": 1, "activation": "gelu"}) == {
        "epochs": [1, 15],
        "activation": ["gelu", None],
    }
    assert unlike_paper("tipsomaly", "headct", {"prompt_family": "medical"}) == {}
    assert unlike_paper("tipsomaly", "visa", {"prompt_family": "medical", "sigma": 4.0}) == {
        "prompt_family": ["medical", "industrial"]
    }
