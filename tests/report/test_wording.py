from zsad_jax.metrics import mean_over
from zsad_jax.report import wording


def test_reasons_are_put_together_and_metrics_spelt_out():
    notes = [f"{m}: no masks" for m in ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1max")]
    assert wording.readable(notes) == ["Pixel metrics: no masks."]
    assert wording.readable(["image_ap: x", "careful: hot.", "plain"]) == [
        "Image AP: x.",
        "Careful: hot.",
        "Plain.",
    ]


def test_notes_of_the_metrics_room_are_understood():
    notes = mean_over(
        {"a": {"image_auroc": 0.5, "image_ap": 1.0}, "b": {"image_auroc": None}}
    ).notes
    assert wording.readable(notes) == [
        "Image AUROC, Image AP: mean over 1 of 2 categories, undefined for b."
    ]


def test_settings_tell_what_is_needed(make_row):
    row = make_row("visa", auxiliary="mvtec_ad", image_score="second")
    assert wording.describe_setting(row, ["auxiliary", "checkpoint", "image_score"]) == (
        "trained on MVTec AD, image score second"
    )
    fixed = make_row("visa", variant="fixed prompts", auxiliary=None, checkpoint=None, seed=None)
    assert wording.describe_setting(fixed, ["variant", "auxiliary", "seed"]) == "fixed prompts"
    unnamed = make_row("visa", auxiliary=None, checkpoint=None)
    assert wording.describe_setting(unnamed, ["auxiliary", "checkpoint"]) == "fixed prompts"


def test_description_names_method_backbone_and_prompts(make_row):
    assert wording.describe(make_row("visa", auxiliary="mvtec_ad")) == (
        "TIPSomaly · backbone tips-l14-hr · prompts learned on MVTec AD (epoch 2)"
        " · industrial wording · images of 518 pixels"
    )
    assert "fixed prompts, nothing learned" in wording.describe(make_row("visa", auxiliary=None))
