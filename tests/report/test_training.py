import pytest

from zsad_jax.report.published import all_numbers
from zsad_jax.report.training import (
    SETTINGS,
    describe_training,
    is_usual,
    tell_training,
    training_of,
)


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
def test_the_same_training_is_called_the_same_for_every_dataset(
    make_row, dataset, auxiliary, training
):
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
def test_what_the_papers_main_numbers_stand_for(make_row, fields, usual):
    assert is_usual(make_row("visa", **fields)) == usual


def test_another_training_is_told_beside_the_papers(make_row):
    rows = [make_row(key, auxiliary="mpdd") for key in ("mvtec_ad", "visa", "headct")]
    assert tell_training([*rows, make_row("btad")]) == [
        "Trained on MPDD, the paper's on VisA.",
        "Trained on MPDD, the paper's on MVTec AD.",
    ]
    rows = [make_row("headct"), make_row("mvtec_ad"), make_row("visa")]
    assert describe_training(rows) == "trained on MVTec AD or VisA"
    assert describe_training([make_row("visa", auxiliary=None)]) == ""


def test_every_published_setting_of_another_training_is_known():
    printed = {
        (n.paper, n.setting)
        for n in all_numbers()
        if "trained on" in n.setting or "fine-tuned" in n.setting
    }
    known = {(paper, setting) for (paper, _), settings in SETTINGS.items() for setting in settings}
    others = {
        ("tps", "variant: trained on industrial data (the default)"),
        ("faprompt", "variant: ensemble of 10 prompts trained with different seeds"),
    }
    assert known == printed - others
