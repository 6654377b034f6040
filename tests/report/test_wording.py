from zsad_jax.metrics import Note
from zsad_jax.report import wording


def test_notes_with_same_reason_share_a_sentence():
    notes = [
        Note((metric,), "no masks")
        for metric in ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1max")
    ]
    assert wording.sentences(notes) == ["Pixel metrics: no masks."]
    notes = [Note(("image_ap",), "x"), Note((), "careful: hot"), Note((), "plain")]
    assert wording.sentences(notes) == ["Image AP: x.", "Careful: hot.", "Plain."]


def test_mean_names_excluded_members(make_row):
    rows = [make_row("visa", "candle"), make_row("visa", "pipe_fryum", image_auroc=None)]
    assert wording.sentences(wording.absence_notes(rows, "categories")) == [
        "Image AUROC: mean over 1 of 2 categories; undefined: pipe fryum."
    ]


def test_settings_describe_only_differences(make_row):
    row = make_row("visa", auxiliary="mvtec_ad", image_score="second")
    assert wording.describe_setting(row, ["auxiliary", "checkpoint", "image_score"]) == (
        "trained on MVTec AD, image score second"
    )
    loaded = make_row("visa", auxiliary="mvtec_ad", checkpoint="prompts.npz", seed=None)
    assert wording.describe_setting(loaded, ["auxiliary", "checkpoint"]) == (
        "trained on MVTec AD, prompts prompts.npz"
    )
    fixed = make_row("visa", variant="fixed prompts", auxiliary=None, checkpoint=None, seed=None)
    assert wording.describe_setting(fixed, ["variant", "auxiliary", "seed"]) == "fixed prompts"
    unnamed = make_row("visa", auxiliary=None, checkpoint=None)
    assert wording.describe_setting(unnamed, ["auxiliary", "checkpoint"]) == "fixed prompts"


def test_description_names_method_backbone_and_prompts(make_row):
    assert wording.describe(make_row("visa", auxiliary="mvtec_ad")) == (
        "TIPSomaly · backbone tips-l14-hr · prompts learned on MVTec AD (epoch 2)"
        " · prompt family industrial · image size 518 px"
    )
    assert "fixed prompts (nothing learned)" in wording.describe(make_row("visa", auxiliary=None))
