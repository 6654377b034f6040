import pytest

from zsad_jax.report.compare import WITHOUT_MASK
from zsad_jax.report.papers import compare_papers
from zsad_jax.report.papers.sheets import make_sheets
from zsad_jax.report.papers.side_by_side import make_gain_table, printed_gains
from zsad_jax.report.papers.workdirs import columns_of
from zsad_jax.report.published import MAIN_TABLES, all_numbers

BRAIN = ("headct", "brainmri", "br35h")


def gain_table(paper, ours=()):
    return make_gain_table(
        paper, [sheet for sheet in make_sheets(paper) if not sheet.by_category], ours
    )


def test_gains_match_those_of_the_poster():
    table = gain_table("tipsomaly")
    printed = printed_gains("tipsomaly")
    assert len(printed) == 9
    computed = {}
    for line in table.lines:
        known = dict(line.keys)
        place = (known["dataset"], f"{known['level']}_{known['metric']}")
        computed[place] = line.cells[1].difference
        assert line.labels[3] == printed.get(place, "–")
    assert len(computed) == 12
    assert {place: f"{computed[place]:+.1f}" for place in printed} == printed


def test_gains_are_relative_to_best_published_method(make_ours):
    table = gain_table("tipsomaly", [make_ours(dict.fromkeys(BRAIN, 0.95), method="coop")])
    lines = {line.labels[:2]: line for line in table.lines}
    line = lines["Medical mean", "Image AUROC"]
    assert line.labels[2] == "AnomalyCLIP"
    place = ("tipsomaly", "1", "anomalyclip", "medical_mean", "image_auroc")
    (best,) = (
        n for n in all_numbers() if (n.paper, n.table, n.method, n.dataset, n.metric) == place
    )
    assert [cell.value for cell in line.cells] == [best.percent, 92.8, 95.0]
    assert line.cells[2].difference == 2.2
    assert lines["Industrial mean", "Image AUROC"].cells[2].text == ""
    assert not table.footnotes


def test_mean_over_fewer_datasets_has_no_gain(make_ours):
    table = gain_table("vip2clip", [make_ours({"headct": 0.99}, method="vip2clip")])
    cells = [line.cells[2] for line in table.lines if line.labels[0] == "Medical mean"]
    assert {cell.difference for cell in cells} == {None}
    assert "Mean over 1 of 3 datasets; not run: BrainMRI, Br35H." in table.footnotes


def test_mean_with_partial_dataset_has_no_gain(make_row):
    rows = [make_row(key, method="vip2clip", image_auroc=0.99) for key in BRAIN]
    rows[1]["n_images"] -= 3
    table = gain_table("vip2clip", columns_of(rows))
    (line, *_) = (one for one in table.lines if one.labels[0] == "Medical mean")
    assert (line.cells[2].value, line.cells[2].difference) == (99.0, None)
    assert line.cells[2].footnotes[0] == ("BrainMRI: 250 of 253 images were evaluated.")


def test_other_training_has_no_gain(make_ours):
    ours = make_ours(
        dict.fromkeys(BRAIN, 0.99), method="vip2clip", auxiliary="mvtec_ad+cvc_colondb"
    )
    table = gain_table("vip2clip", [ours])
    (line, *_) = (one for one in table.lines if one.labels[0] == "Medical mean")
    assert (line.cells[2].value, line.cells[2].difference) == (99.0, None)
    assert list(line.cells[2].footnotes) == [
        "Trained on MVTec AD + CVC-ColonDB; the paper trained on MVTec AD."
    ]


def test_pixel_mean_with_missing_masks_has_no_gain(make_row):
    keys = ("isic", "cvc_colondb", "cvc_clinicdb", "kvasir")
    rows = [make_row(key, method="vip2clip", pixel_auroc=0.9) for key in keys]
    cells = []
    for without_mask in ({}, {"kvasir": 1}):
        table = gain_table("vip2clip", columns_of(rows, {WITHOUT_MASK: without_mask}))
        (line,) = (one for one in table.lines if one.labels[:2] == ("Medical mean", "Pixel AUROC"))
        cells.append(line.cells[2])
    assert [cell.value for cell in cells] == [90.0, 90.0]
    assert (cells[0].difference is None, cells[1].difference) == (False, None)
    assert cells[1].footnotes[0] == ("Kvasir-SEG: 1 of 1000 anomalous images has no usable mask.")


@pytest.mark.parametrize("paper", MAIN_TABLES)
def test_full_shot_and_own_numbers_are_not_prior(paper):
    own = {"faprompt": "FAPrompt", "tps": "TPS", "vip2clip": "ViP²-CLIP", "tipsomaly": "TIPSomaly"}
    table = gain_table(paper)
    assert not {line.labels[2] for line in table.lines} & {own[paper], "PatchCore", "RD4AD"}
    assert table.columns[1].name == own[paper]


def test_suspicious_prior_is_marked():
    table = gain_table("faprompt")
    (line,) = (one for one in table.lines if one.labels[:2] == ("Medical mean", "Image AP"))
    assert line.cells[0].number == "90.6†"
    assert (
        "† Medical mean, Image AP, AnomalyCLIP: suspicious: members average to 90.85."
        in table.footnotes
    )


def test_gains_are_between_datasets_and_categories():
    (paper,) = compare_papers([], paper="vip2clip")
    kinds = [table.title.split(":")[0] + table.compared for table in paper.tables]
    position = kinds.index("ViP²-CLIPbest prior method")
    assert kinds[position - 1].startswith("ViP²-CLIP, Table 2")
    assert kinds[position + 1].startswith("ViP²-CLIP, Table 10")
    (alone,) = compare_papers([], paper="tps", table="gain")
    assert [table.compared for table in alone.tables] == ["best prior method"]
