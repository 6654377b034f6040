import csv
import io

import pytest

from zsad_jax.report import formats, names
from zsad_jax.report.compare import WITHOUT_MASK
from zsad_jax.report.papers import compare_papers, compare_run, find_missing
from zsad_jax.report.papers.sheets import Place, make_sheets
from zsad_jax.report.papers.side_by_side import make_table
from zsad_jax.report.papers.workdirs import columns_of
from zsad_jax.report.published import MAIN_TABLES, all_numbers, is_main, published_numbers

BRAIN = ("headct", "brainmri", "br35h")
INDUSTRIAL_7 = ("mvtec_ad", "visa", "mpdd", "btad", "ksdd", "dagm", "dtd_synthetic")


def sheet_of(paper, table, metric):
    (sheet,) = (one for one in make_sheets(paper, table=table) if one.metric == metric)
    return sheet


def cells_of(table, label):
    (line,) = (line for line in table.lines if line.labels[0] == label)
    return {column.full: cell for column, cell in zip(table.columns, line.cells, strict=True)}


def notes_of(table, cell):
    return [table.footnotes[mark - 1] for mark in table.marks(cell)]


def test_renders_paper_with_our_results(make_ours):
    ours = make_ours(dict.fromkeys(BRAIN, 0.9))
    sheet = sheet_of("tipsomaly", "1", "image_auroc")
    sheet = sheet.limited_to([Place(key) for key in ("visa", *BRAIN, "medical_mean")])
    assert formats.render("table.md", table=make_table(sheet, [ours])) == (
        "### TIPSomaly, Table 1: Image AUROC\n"
        "\n"
        "| Dataset | APRIL-GAN | AnomalyCLIP | AdaCLIP | TIPSomaly | ours: TIPSomaly |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| VisA | 78.0 | 82.1 | 85.8 | 87.7 |  |\n"
        "| HeadCT | 89.2 | 93.4 | 91.8 | 92.7 | 90.0 (−2.7) |\n"
        "| BrainMRI | 89.6 | 90.3 | 93.5 | 92.4 | 90.0 (−2.4) |\n"
        "| Br35H | 91.4 | 94.6 | 92.3 | 93.2 | 90.0 (−3.2) |\n"
        "| **Medical mean** | **90.1** | **92.8** | **92.5** | **92.8** | **90.0 (−2.8)** |\n"
    )


@pytest.mark.parametrize("paper", MAIN_TABLES)
def test_rows_are_grouped_by_domain_and_followed_by_their_mean(paper):
    for sheet in make_sheets(paper):
        if not sheet.by_category:
            labels = [place.dataset for place in sheet.places]
            domains = {"industrial_mean", "medical_mean"} & set(labels)
            assert domains
            assert labels[-1] in domains
            if len(domains) == 2:
                assert labels.index("industrial_mean") < labels.index("medical_mean")
                assert not set(labels[: labels.index("industrial_mean")]) & {*BRAIN, "isic"}


def test_compares_ours_with_full_model_of_ablation(make_ours):
    ours = make_ours({"visa": 0.9}, method="vip2clip")
    table = make_table(sheet_of("vip2clip", "4", "image_auroc"), [ours])
    full = published_numbers("vip2clip", "visa")["image_auroc"].percent
    assert cells_of(table, "VisA")["ours: ViP²-CLIP"].difference == round(90 - full, 1)
    table = make_table(sheet_of("vip2clip", "5", "image_auroc"), [ours])
    assert cells_of(table, "VisA")["ours: ViP²-CLIP"].difference is None


def test_full_shot_methods_are_a_separate_group():
    table = make_table(sheet_of("faprompt", "1", "image_auroc"), [])
    assert [column.group for column in table.columns] == ["published"] * 9 + [
        "published, full-shot"
    ] * 2
    assert cells_of(table, "VisA")["PatchCore (published, full-shot)"].text == "94.6"
    assert "PatchCore, RD4AD: Table 8, full-shot." in table.footnotes
    assert cells_of(table, "Industrial mean")["PatchCore (published, full-shot)"].text == ""
    f1 = make_table(sheet_of("vip2clip", "1", "image_f1max"), [])
    assert {column.group for column in f1.columns} == {"published"}


def test_suspicious_number_is_marked_with_its_reason():
    table = make_table(sheet_of("vip2clip", "17", "pixel_aupro"), [])
    marked = [line.labels[0] for line in table.lines if "†" in line.cells[4].number]
    assert len(marked) == 15
    (note,) = table.footnotes
    assert note == (
        f"† AdaCLIP, {', '.join(marked)}: suspicious: the column reads as if in alphabetical order of"
        " the categories and so on the wrong rows."
    )
    assert "suspicious: the column reads" in formats.to_csv([table])


def test_corrected_number_has_a_footnote():
    table = make_table(sheet_of("faprompt", "2", "pixel_aupro"), [])
    cell = cells_of(table, "AITEX")["CoCoOp"]
    assert notes_of(table, cell) == ['CoCoOp, AITEX: printed "56,9" read as 56.9.']


def test_unpublished_means_are_recomputed_with_a_footnote():
    table = make_table(sheet_of("tps", "1", "image_auroc"), [])
    cell = cells_of(table, "Medical mean")["CLIP"]
    (numbers,) = (
        numbers
        for competitor, numbers in sheet_of("tps", "1", "image_auroc").columns.items()
        if competitor.method == "clip"
    )
    members = [numbers[Place(key)] for key in BRAIN]
    assert cell.value == round(sum(number.percent for number in members) / 3, 1)
    assert notes_of(table, cell) == [
        "Not published; computed as the mean of the published numbers."
    ]
    assert dict(cell.keys)["source"] == "recomputed"
    assert cells_of(table, "Medical mean")["AnomalyCLIP"].number.endswith("†")
    assert (
        "† AnomalyCLIP, Medical mean: the mean includes a suspicious number (Br35H)."
        in table.footnotes
    )
    table = make_table(sheet_of("faprompt", "1", "image_auroc"), [])
    cell = cells_of(table, "Industrial mean")["FAPrompt"]
    assert (cell.text, notes_of(table, cell)) == ("88.2", ["Published in Table 3."])
    (line,) = (line for line in table.lines if line.labels == ("Industrial mean",))
    assert list(line.footnotes) == ["Excludes MVTec AD, as in the paper."]


@pytest.mark.parametrize("metric", ["image_auroc", "pixel_aupro"])
def test_our_mean_excludes_the_same_datasets_as_the_papers(make_ours, metric):
    sheet = sheet_of("faprompt", "1" if metric == "image_auroc" else "2", metric)
    values = dict.fromkeys(sheet.members(Place("industrial_mean")), 0.8)
    assert "mvtec_ad" not in values
    table = make_table(sheet, [make_ours(values | {"mvtec_ad": 0.1}, method="faprompt")])
    cell = cells_of(table, "Industrial mean")["ours: FAPrompt"]
    assert (cell.value, cell.footnotes) == (80.0, ())
    printed = published_numbers("faprompt", "industrial_mean")[metric].percent
    assert cell.difference == round(80 - printed, 1)


def test_mean_over_fewer_datasets_has_no_difference(make_ours, make_row):
    values = {"mvtec_ad": 0.8, "visa": 0.9, "mpdd": None}
    table = make_table(sheet_of("tipsomaly", "1", "image_auroc"), [make_ours(values)])
    cell = cells_of(table, "Industrial mean")["ours: TIPSomaly"]
    assert (cell.value, cell.difference) == (85.0, None)
    assert notes_of(table, cell) == [
        "Mean over 2 of 7 datasets; not run: BTAD, KolektorSDD, DAGM 2007, DTD-Synthetic;"
        " undefined: MPDD."
    ]
    assert cells_of(table, "Medical mean")["ours: TIPSomaly"].text == ""
    cell = cells_of(table, "MPDD")["ours: TIPSomaly"]
    assert (cell.number, notes_of(table, cell)) == ("–", ["MPDD: undefined for the data."])
    assert cells_of(table, "BTAD")["ours: TIPSomaly"].number == ""


@pytest.mark.parametrize(
    ("dataset", "metric", "fields", "words"),
    [
        ("headct", "image_auroc", {"n_anomalous": 0}, "HeadCT: all images are normal."),
        ("headct", "image_auroc", {"n_anomalous": 200}, "HeadCT: all images are anomalous."),
        ("visa", "pixel_aupro", {}, "VisA: AUPRO at 200 thresholds was not computed."),
        ("visa", "pixel_aupro", {"pixel_aupro": None}, "VisA: undefined for the data."),
    ],
)
def test_reason_for_undefined_number(make_ours, dataset, metric, fields, words):
    ours = make_ours({dataset: None}, **fields)
    table = make_table(sheet_of("tipsomaly", "1", metric), [ours])
    cell = cells_of(table, names.dataset_name(dataset))["ours: TIPSomaly"]
    assert (cell.number, notes_of(table, cell)) == ("–", [words])


def test_mean_of_dataset_covers_categories_of_the_paper(make_ours):
    sheet = sheet_of("faprompt", "13", "image_auroc")
    categories = [place.category for place in sheet.places if place.category != "mean"]
    values = {("visa", key): 0.9 for key in categories}
    whole = make_ours({**values, "visa": 0.9}, method="faprompt")
    cells = cells_of(make_table(sheet, [whole]), "Mean")
    assert cells["ours: FAPrompt"].difference == round(90 - cells["FAPrompt"].value, 1)
    cells = cells_of(make_table(sheet, [whole]), "pipe fryum")
    assert cells["ours: FAPrompt"].difference == round(90 - cells["FAPrompt"].value, 1)

    values["visa", "candle"] = None
    del values["visa", "pcb4"]
    part = make_ours({**values, "visa": 0.9}, method="faprompt")
    table = make_table(sheet, [part])
    cell = cells_of(table, "Mean")["ours: FAPrompt"]
    assert cell.difference is None
    words = [
        "VisA: 11 of 12 categories were evaluated.",
        "VisA: mean over 10 of 11 categories; undefined: candle.",
    ]
    assert sorted(notes_of(table, cell)) == words
    assert table.marks(cell) == sorted(table.marks(cell))
    above = make_table(sheet_of("tipsomaly", "1", "image_auroc"), [part])
    cell = cells_of(above, "Industrial mean")["ours: FAPrompt"]
    assert set(words) <= set(notes_of(above, cell))
    cell = cells_of(table, "pipe fryum")["ours: FAPrompt"]
    assert (cell.difference, notes_of(table, cell)) == (None, words[:1])


def test_partial_dataset_has_no_difference(make_row):
    rows = [make_row(key, image_auroc=0.9) for key in BRAIN]
    rows[0] |= {"n_images": 40, "n_anomalous": 20}
    sheet = sheet_of("tipsomaly", "1", "image_auroc")
    sheet = sheet.limited_to([Place(key) for key in (*BRAIN, "medical_mean")])
    table = make_table(sheet, columns_of(rows))
    assert formats.render("table.md", table=table) == (
        "### TIPSomaly, Table 1: Image AUROC\n"
        "\n"
        "| Dataset | APRIL-GAN | AnomalyCLIP | AdaCLIP | TIPSomaly | ours: TIPSomaly |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| HeadCT | 89.2 | 93.4 | 91.8 | 92.7 | 90.0 [1] |\n"
        "| BrainMRI | 89.6 | 90.3 | 93.5 | 92.4 | 90.0 (−2.4) |\n"
        "| Br35H | 91.4 | 94.6 | 92.3 | 93.2 | 90.0 (−3.2) |\n"
        "| **Medical mean** | **90.1** | **92.8** | **92.5** | **92.8** | **90.0 [1]** |\n"
        "\n"
        "[1] HeadCT: 40 of 200 images were evaluated.  \n"
    )
    (ours,) = (row for row in csv.DictReader(io.StringIO(formats.to_csv([table])))
               if (row["source"], row["dataset"]) == ("ours", "headct"))  # fmt: skip
    assert (ours["value"], ours["difference"]) == ("90.0", "")
    assert ours["note"] == "HeadCT: 40 of 200 images were evaluated."


def test_lists_datasets_that_were_not_run_once(make_ours):
    ours = make_ours(dict.fromkeys((*INDUSTRIAL_7, *BRAIN, "tn3k"), 0.9))
    papers = compare_papers([ours], paper="tipsomaly")
    assert find_missing([ours], papers) == [
        "TIPSomaly was not run on ISIC 2016, CVC-ColonDB, CVC-ClinicDB."
    ]
    assert find_missing([], papers) == []


def test_run_is_compared_with_tables_of_its_paper(make_row):
    rows = [make_row(key, category) for key in BRAIN for category in (key, "mean")]
    tables = compare_run([*rows, make_row("mvtec_ad", "mean")])
    assert [table.title for table in tables] == [
        f"TIPSomaly, Table 1: {metric}"
        for metric in (
            *("Image AUROC", "Image AP", "Image F1-max"),
            *("Pixel AUROC", "Pixel AUPRO", "Pixel F1-max"),
        )
    ]
    labels = [line.labels[0] for line in tables[0].lines]
    assert labels == ["MVTec AD", "HeadCT", "BrainMRI", "Br35H", "Medical mean"]
    assert [line.labels[0] for line in tables[3].lines] == ["MVTec AD"]
    (coop, *_) = compare_run([make_row("lag", method="coop")])
    assert coop.title == "FAPrompt, Table 1: Image AUROC"
    assert compare_run([make_row("synthetic_target"), make_row("mpdd", method="new")]) == []


def test_unknown_competitor_has_no_reference():
    sheet = sheet_of("vip2clip", "1", "image_auroc")
    assert sheet.reference("nobody", Place("industrial_mean")) is None
    own = [n for n in all_numbers() if is_main(n) and n.method == "vip2clip"]
    assert own


def test_other_training_is_compared_with_numbers_of_that_training(make_ours):
    ours = make_ours({"brainmri": 0.95, "br35h": 0.96}, method="tps", auxiliary="headct")
    table = make_table(sheet_of("tps", "3", "image_auroc"), [ours])
    assert formats.render("table.md", table=table) == (
        "### TPS, Table 3: Image AUROC\n"
        "\n"
        "| Dataset | TPS, variant: trained on industrial data (the default)"
        " | TPS, variant: trained on medical data (HeadCT) | ours: TPS (trained on HeadCT) |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| HeadCT | 92.3 | 99.9† |  |\n"
        "| BrainMRI | 92.4 | 96.8 | 95.0 (−1.8) |\n"
        "| Br35H | 96.2 | 98.4 | 96.0 (−2.4) |\n"
        "\n"
        "† TPS, variant: trained on medical data (HeadCT), HeadCT: suspicious: the training dataset of this"
        " variant is the test dataset.  \n"
    )
    main = make_table(sheet_of("tps", "1", "image_auroc"), [ours])
    cell = cells_of(main, "BrainMRI")["ours: TPS (trained on HeadCT)"]
    assert (cell.number, cell.difference) == ("95.0", None)
    assert notes_of(main, cell) == ["Trained on HeadCT; the paper trained on MVTec AD."]


def test_common_training_is_compared_with_default(make_ours):
    ours = make_ours({"brainmri": 0.95}, method="tps")
    table = make_table(sheet_of("tps", "3", "image_auroc"), [ours])
    assert cells_of(table, "BrainMRI")["ours: TPS"].difference == 2.6


def test_training_with_polyp_dataset_has_its_own_table(make_ours):
    polyps = {"cvc_colondb": "visa+cvc_clinicdb"}
    values = dict.fromkeys(("isic", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo"), 0.9)
    made = [
        make_ours({key: 0.9}, method="vip2clip", auxiliary=polyps.get(key, "mvtec_ad+cvc_colondb"))
        for key in values
    ]
    (ours,) = columns_of([row for one in made for row in one.rows.values()])
    name = "ours: ViP²-CLIP (trained on MVTec AD + CVC-ColonDB or VisA + CVC-ClinicDB)"
    assert f"ours: {ours.name}" == name
    table = make_table(sheet_of("vip2clip", "9", "pixel_aupro"), [ours])
    printed = {
        n.dataset: n.percent
        for n in all_numbers()
        if (n.paper, n.table, n.method, n.metric) == ("vip2clip", "9", "vip2clip", "pixel_aupro")
    }
    assert set(printed) == {*values, "medical_mean"}
    for dataset, percent in printed.items():
        cell = cells_of(table, names.dataset_name(dataset))[name]
        assert (cell.difference, cell.footnotes) == (round(90 - percent, 1), ())
    table = make_table(sheet_of("vip2clip", "2", "pixel_aupro"), [ours])
    cell = cells_of(table, "CVC-ColonDB")[name]
    assert cell.difference is None
    words = "Trained on {}; the paper trained on MVTec AD."
    assert notes_of(table, cell) == [words.format("VisA + CVC-ClinicDB")]
    cell = cells_of(table, "Medical mean")[name]
    assert cell.difference is None
    assert {
        words.format("MVTec AD + CVC-ColonDB"), words.format("VisA + CVC-ClinicDB")
    } <= set(notes_of(table, cell))  # fmt: skip


def test_unpublished_training_has_no_difference(make_ours):
    ours = make_ours(dict.fromkeys(BRAIN, 0.9), auxiliary="mpdd")
    table = make_table(sheet_of("tipsomaly", "1", "image_auroc"), [ours])
    for label in ("HeadCT", "Medical mean"):
        cell = cells_of(table, label)["ours: TIPSomaly (trained on MPDD)"]
        assert (cell.value, cell.difference) == (90.0, None)
        assert notes_of(table, cell) == ["Trained on MPDD; the paper trained on MVTec AD."]
    nothing = make_table(sheet_of("faprompt", "1", "image_auroc"), [ours])
    assert not cells_of(nothing, "HeadCT")["ours: TIPSomaly (trained on MPDD)"].footnotes


def test_results_without_training_keep_their_difference(make_ours):
    ours = make_ours({"headct": 0.9}, auxiliary=None, checkpoint=None)
    table = make_table(sheet_of("tipsomaly", "1", "image_auroc"), [ours])
    assert cells_of(table, "HeadCT")["ours: TIPSomaly"].difference == -2.7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"variant": "pathway=False"}, "variant pathway=False (the paper: default)"),
        ({"backbone": "clip-nano"}, "backbone clip-nano (the paper: clip-vit-l14-336)"),
        ({"image_size": 252}, "image size 252 (the paper: 518)"),
    ],
)
def test_other_setting_has_no_difference(make_ours, fields, words):
    """Compares with the paper's training, and with a training that has its own table."""
    for training, table in (({}, "1"), ({"auxiliary": "headct"}, "3")):
        ours = make_ours({"brainmri": 0.95}, method="tps", **fields, **training)
        made = make_table(sheet_of("tps", table, "image_auroc"), [ours])
        cell = cells_of(made, "BrainMRI")[f"ours: {ours.name}"]
        assert (cell.number, cell.difference) == ("95.0", None)
        assert notes_of(made, cell) == [f"TPS: {words}."]


def test_demonstration_has_no_difference(make_ours):
    fields = {"backbone": "tips-nano", "auxiliary": "synthetic_aux", "image_size": 252}
    ours = make_ours({"headct": 0.9}, **fields)
    made = make_table(sheet_of("tipsomaly", "1", "image_auroc"), [ours])
    cell = cells_of(made, "HeadCT")[f"ours: {ours.name}"]
    assert (cell.number, cell.difference) == ("90.0", None)


def test_both_trainings_of_faprompt_have_differences(make_row):
    full = "mvtec_ad:train+mvtec_ad:test"
    rows = [
        make_row("visa", method="faprompt", image_auroc=0.9, auxiliary=key)
        for key in ("mvtec_ad", full)
    ]
    table = make_table(sheet_of("faprompt", "1", "image_auroc"), columns_of(rows))
    cells = cells_of(table, "VisA")
    heads = [
        f"ours: FAPrompt (trained on {key})"
        for key in ("MVTec AD", "MVTec AD (train) + MVTec AD (test)")
    ]
    printed = published_numbers("faprompt", "visa")["image_auroc"].percent
    assert [cells[head].difference for head in heads] == [round(90 - printed, 1)] * 2


def test_pixel_metrics_with_missing_masks_have_no_difference(make_row):
    rows = [make_row("rsdds_113", method="tps", pixel_auroc=0.662)]
    words = "RSDDs-113: 53 of 113 anomalous images have no usable mask."
    table = make_table(
        sheet_of("tps", "2", "pixel_auroc"), columns_of(rows, {WITHOUT_MASK: {"rsdds_113": 53}})
    )
    cell = cells_of(table, "RSDDs-113")["ours: TPS"]
    assert (cell.number, cell.difference, notes_of(table, cell)) == ("66.2", None, [words])
    table = compare_run(rows, {WITHOUT_MASK: {"rsdds_113": 53}})[0]
    assert cells_of(table, "RSDDs-113")["ours: TPS"].difference is None
    whole = make_table(sheet_of("tps", "2", "pixel_auroc"), columns_of(rows))
    assert cells_of(whole, "RSDDs-113")["ours: TPS"].difference == -30.1
