import csv
import io
import itertools
import re

import pytest

from zsad_jax.metrics import Note
from zsad_jax.report import formats, run_tables, tables
from zsad_jax.report.compare import UNLIKE_PAPER, WITHOUT_MASK
from zsad_jax.report.rows import combine_seeds

PIXEL = ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1max", "pixel_aupro_200step")


def metrics(table):
    return [dict(column.keys)["metric"] for column in table.columns]


def cell_of(table, line, metric):
    return table.lines[line].cells[metrics(table).index(metric)]


def test_paper_and_rounded_difference_are_beside_ours(make_row):
    table = run_tables.dataset_table([make_row("mvtec_ad", image_auroc=0.91249)], {})
    cell = cell_of(table, 0, "image_auroc")
    assert (cell.value, cell.paper.percent, cell.difference) == (91.2, 93.4, -2.2)
    assert "91.2 (93.4, −2.2)" in formats.render("table.md", table=table)


def test_papers_aupro_is_compared_with_200_steps_only(make_row):
    table = run_tables.dataset_table(
        [make_row("mvtec_ad", pixel_aupro=0.9, pixel_aupro_200step=0.85)], {}
    )
    assert cell_of(table, 0, "pixel_aupro") == tables.Cell(90.0)
    assert cell_of(table, 0, "pixel_aupro_200step").difference == 1.0


def test_text_has_paper_and_difference_below_ours_in_100_columns(make_row):
    rows = [make_row("mvtec_ad", image_auroc=0.91249), make_row("visa", pixel_auroc=None)]
    text = formats.to_text(run_tables.dataset_table(rows, {}))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("MVTec AD"))
    assert lines[at].split()[:5] == ["MVTec", "AD", "1725", "(1258)", "91.2"]
    assert [line.split()[:2] for line in lines[at + 1 : at + 3]] == [
        ["paper", "93.4"],
        ["difference", "−2.2"],
    ]
    assert [line for line in lines if line.startswith("[1] ")]
    assert max(map(len, lines[: at + 6])) <= 100


@pytest.mark.parametrize("name", ["", "x" * 60, "a long name of a category of things"])
def test_text_has_lines_for_any_label(make_row, name):
    rows = [make_row("mine", category, image_auroc=0.5) for category in (name, "b", "mean")]
    text = formats.to_text(run_tables.category_table("mine", rows, {}))
    assert sum(line.endswith("50.0") for line in text.splitlines()) == 3
    assert max(map(len, text.splitlines())) <= 100
    assert name in text.replace("\n", " ") or name in text.replace("\n", "")


def test_omits_200_step_column_if_never_computed(make_row):
    table = run_tables.dataset_table([make_row("visa", pixel_aupro_200step=None)], {})
    assert "pixel_aupro_200step" not in metrics(table)
    assert "pixel_aupro" in metrics(table)


def test_undefined_metric_is_a_dash_and_excluded_from_the_mean(make_row):
    undefined = dict.fromkeys(PIXEL, float("nan"))
    rows = [
        make_row("visa", pixel_auroc=0.8),
        make_row("mpdd", pixel_auroc=0.7),
        make_row("elpv", **undefined),
    ]
    table = run_tables.dataset_table(rows, {("elpv", "mean"): [Note((), "no masks")]})
    text = formats.render("table.md", table=table)
    assert cell_of(table, 2, "pixel_auroc").value is None
    assert cell_of(table, 3, "pixel_auroc").value == 75.0
    assert "ELPV [1]" in text
    assert "[1] No masks." in text
    assert "mean over 2 of 3 datasets; undefined: ELPV." in text
    assert "| – |" in text
    assert "| 0.0" not in text


INDUSTRIAL = ("mvtec_ad", "visa", "mpdd", "btad", "ksdd", "dagm", "dtd_synthetic")
BRAIN = ("headct", "brainmri", "br35h")


def test_partial_dataset_has_footnote_instead_of_difference(make_row):
    rows = [make_row(key, image_auroc=0.9) for key in BRAIN]
    rows[0] |= {"n_images": 40, "n_anomalous": 20}
    table = run_tables.dataset_table(rows, {})
    assert table.footnotes == ("HeadCT: 40 of 200 images were evaluated.",)
    assert [table.marks(line) for line in table.lines] == [[1], [], [], [1]]
    cells = [cell_of(table, line, "image_auroc") for line in range(4)]
    assert [cell.beside for cell in cells] == [
        ("92.7",),
        ("92.4", "−2.4"),
        ("93.2", "−3.2"),
        ("92.8",),
    ]
    first, second, _ = csv.DictReader(io.StringIO(run_tables.results_csv(rows)))
    assert (first["image_auroc_paper"], first["image_auroc_difference"]) == ("92.7", "")
    assert first["notes"] == "HeadCT: 40 of 200 images were evaluated."
    assert (second["image_auroc_difference"], second["notes"]) == ("-2.4", "")


def test_pixel_metrics_with_missing_masks_have_no_difference(make_row):
    row = make_row("rsdds_113", method="tps", pixel_auroc=0.662)
    words = "RSDDs-113: 53 of 113 anomalous images have no usable mask."
    (table,) = run_tables.make_tables([row], run={WITHOUT_MASK: {"rsdds_113": 53}})
    assert cell_of(table, 0, "pixel_auroc").beside == ("96.3",)
    assert table.footnotes[0] == words
    (whole,) = run_tables.make_tables([row])
    assert cell_of(whole, 0, "pixel_auroc").beside == ("96.3", "−30.1")
    text = run_tables.results_csv([row], run={WITHOUT_MASK: {"rsdds_113": 53}})
    (line,) = csv.DictReader(io.StringIO(text))
    assert (line["pixel_auroc_paper"], line["pixel_auroc_difference"]) == ("96.3", "")
    assert line["notes"] == words


def test_image_metrics_with_missing_masks_keep_their_difference(make_row):
    rows = [make_row(key, image_auroc=0.9, pixel_auroc=0.9) for key in INDUSTRIAL]
    table = run_tables.dataset_table(rows, {}, {WITHOUT_MASK: {"ksdd": 4}})
    ksdd = INDUSTRIAL.index("ksdd")
    for line in (ksdd, -1):  # the dataset, and the mean that includes it
        assert cell_of(table, line, "image_auroc").difference is not None
        cell = cell_of(table, line, "pixel_auroc")
        assert (cell.paper is None, cell.difference) == (False, None)
    assert cell_of(table, 0, "pixel_auroc").difference is not None
    assert table.footnotes == ("KolektorSDD: 4 of 54 anomalous images have no usable mask.",)


def test_other_training_has_footnote_instead_of_difference(make_row):
    rows = [make_row(key, image_auroc=0.9, auxiliary="mpdd") for key in BRAIN]
    table = run_tables.dataset_table(rows, {})
    words = "Trained on MPDD; the paper trained on MVTec AD."
    assert table.footnotes == (words,)
    assert [table.marks(line) for line in table.lines] == [[1]] * 4
    assert [cell_of(table, line, "image_auroc").beside for line in range(4)] == [
        ("92.7",),
        ("92.4",),
        ("93.2",),
        ("92.8",),
    ]
    comparison = make_row("headct", auxiliary="mpdd", variant="fixed prompts")
    first, *_, last = csv.DictReader(io.StringIO(run_tables.results_csv(rows, [comparison])))
    assert (first["image_auroc_paper"], first["image_auroc_difference"]) == ("92.7", "")
    assert (first["notes"], last["notes"]) == (words, "")
    elsewhere = run_tables.dataset_table([make_row("lag", auxiliary="mpdd")], {})
    assert not elsewhere.footnotes  # nothing is published to compare with


SETTINGS = [
    ({"variant": "learning=none"}, {}, "variant learning=none (the paper: default)"),
    ({"backbone": "tips-nano"}, {}, "backbone tips-nano (the paper: tips-l14-hr)"),
    ({"image_size": 448}, {}, "image size 448 (the paper: 518)"),
    ({"image_score": "first"}, {}, "image score first (the paper: second)"),
    ({"sigma": 8.0}, {}, "sigma 8.0 (the paper: 4.0)"),
    (
        {"prompt_family": "industrial"},
        {},
        "prompt family industrial (the paper: medical)",
    ),
    ({}, {"epochs": [5, 2]}, "epochs 5 (the paper: 2)"),
    (
        {"backbone": "tips-nano", "image_size": 252},
        {"shuffle": [True, False]},
        "backbone tips-nano (the paper: tips-l14-hr), image size 252 (the paper: 518), shuffle True (the"
        " paper: False)",
    ),
]


@pytest.mark.parametrize(("fields", "unlike", "words"), SETTINGS)
def test_other_setting_has_footnote_instead_of_difference(make_row, fields, unlike, words):
    rows = [make_row(key, image_auroc=0.9, **fields) for key in BRAIN]
    run = {UNLIKE_PAPER: unlike}
    table = run_tables.dataset_table(rows, {}, run)
    assert table.footnotes == (f"TIPSomaly: {words}.",)
    assert [table.marks(line) for line in table.lines] == [[1]] * 4
    assert [cell_of(table, line, "image_auroc").beside for line in range(4)] == [
        ("92.7",),
        ("92.4",),
        ("93.2",),
        ("92.8",),
    ]
    comparison = make_row("headct", variant="fixed prompts")
    text = run_tables.results_csv(rows, [comparison], run=run)
    first, *_, last = csv.DictReader(io.StringIO(text))
    assert (first["image_auroc_paper"], first["image_auroc_difference"]) == ("92.7", "")
    assert (first["notes"], last["notes"]) == (f"TIPSomaly: {words}.", "")
    elsewhere = run_tables.dataset_table([make_row("lag", **fields)], {}, run)
    assert not elsewhere.footnotes


def test_partial_dataset_without_a_metric_does_not_affect_the_mean(make_row):
    rows = [make_row(key, image_auroc=0.9) for key in BRAIN]
    rows.append(make_row("isic", image_auroc=None, n_images=8, n_anomalous=8))
    table = run_tables.dataset_table(rows, {})
    assert cell_of(table, -1, "image_auroc").beside == ("92.8", "−2.8")
    assert "ISIC 2016: 8 of 379 images were evaluated." in table.footnotes


def test_partial_categories_have_no_difference(make_row):
    rows = [make_row("mvtec_ad", name, method="vip2clip") for name in ("bottle", "zipper")]
    rows.append(make_row("mvtec_ad", method="vip2clip", n_images=20, n_anomalous=8))
    (table,) = run_tables.make_tables(rows)
    assert table.footnotes == ("MVTec AD: 2 of 15 categories, 20 of 1725 images were evaluated.",)
    for line in table.lines:
        cell = line.cells[metrics(table).index("image_auroc")]
        assert (table.marks(line), cell.paper is None, cell.difference) == ([1], False, None)


def test_domain_means_are_beside_those_of_the_paper(make_row):
    rows = [make_row(key, image_auroc=0.9) for key in INDUSTRIAL]
    rows += [make_row(key, image_auroc=0.8, **dict.fromkeys(PIXEL)) for key in BRAIN]
    table = run_tables.dataset_table(rows, {})
    labels = [line.labels[0] for line in table.lines if line.summary]
    assert labels == ["Industrial mean", "Medical mean"]
    cell = cell_of(table, -2, "image_auroc")
    assert (cell.value, cell.paper.percent, cell.difference) == (90.0, 92.5, -2.5)
    assert cell_of(table, -2, "pixel_aupro_200step").paper.percent == 90.2
    cell = cell_of(table, -1, "image_auroc")
    assert (cell.value, cell.paper.percent) == (80.0, 92.8)
    assert (
        cell_of(table, -1, "pixel_auroc") == tables.Cell()
    )  # the paper's mean is over other datasets


@pytest.mark.parametrize(
    ("datasets", "undefined"),
    [
        (INDUSTRIAL[1:], ()),  # one fewer
        ((*INDUSTRIAL, "aitex"), ()),  # one more
        (INDUSTRIAL, ("dagm",)),  # same number, one undefined
    ],
)
def test_mean_over_other_datasets_has_no_reference(make_row, datasets, undefined):
    rows = [make_row(key, image_ap=None if key in undefined else 0.9) for key in datasets]
    table = run_tables.dataset_table(rows, {})
    assert table.lines[-1].labels[0] == "Industrial mean"
    assert cell_of(table, -1, "image_ap") == tables.Cell(90.0)
    if undefined:
        assert "Image AP: mean over 6 of 7 datasets; undefined: DAGM 2007." in table.footnotes
        assert cell_of(table, -1, "image_auroc").paper.percent == 92.5


def test_reference_of_a_mean_depends_on_the_method(make_row):
    rows = [make_row(key, method="faprompt") for key in (*BRAIN, "lag")]
    table = run_tables.dataset_table(rows, {})
    assert cell_of(table, -1, "image_auroc").paper.percent == 90.9
    rows[0]["method"] = "tps"
    assert cell_of(run_tables.dataset_table(rows, {}), -1, "image_auroc").paper is None


def test_mean_is_over_all_datasets_if_no_domain_has_two(make_row):
    rows = [make_row("visa"), make_row("headct"), make_row("my_parts")]
    labels = [line.labels[0] for line in run_tables.dataset_table(rows, {}).lines]
    assert labels == ["VisA", "HeadCT", "my_parts", "Mean over datasets"]
    (line,) = run_tables.dataset_table(rows[:1], {}).lines
    assert not line.summary


def test_mean_over_categories_names_excluded_members(make_row):
    rows = [make_row("visa", c, pixel_ap=v) for c, v in (("candle", 0.5), ("pipe_fryum", None))]
    table = run_tables.category_table("visa", [*rows, make_row("visa")], {})
    assert table.lines[-1].labels[0] == "Mean"
    assert "Pixel AP: mean over 1 of 2 categories; undefined: pipe fryum." in table.footnotes


def test_suspicious_number_is_marked_with_its_reason(make_row):
    text = formats.render(
        "table.md", table=run_tables.dataset_table([make_row("btad", method="aprilgan")], {})
    )
    assert "60.8†" in text
    assert "† BTAD, Pixel AUROC: suspicious: other papers print about 89 / 69" in text


def test_comparisons_show_settings_and_differences(make_row):
    main = make_row("visa", pixel_auroc=0.9)
    fixed = make_row("visa", pixel_auroc=0.85, auxiliary="", checkpoint="", epoch=None, seed=None)
    first = make_row("visa", image_score="first", pixel_auroc=0.9)
    twice = fixed | {"image_score": "first"}
    table = run_tables.comparison_table("visa", [main], [fixed, first, twice], {}, {})
    assert [line.labels[0] for line in table.lines] == [
        "Main result",
        "fixed prompts",
        "image score first",
    ]
    assert table.lines[0].footnotes == (
        "Main result: trained on MVTec AD, seed 0, epoch 2, image score second.",
    )
    assert cell_of(table, 1, "pixel_auroc").difference == -5.0
    assert cell_of(table, 1, "pixel_auroc").paper is None


SEEDS = {"mvtec_ad": (0.80, 0.84, 0.88), "visa": (0.70, 0.72, None)}  # image AUROC of seeds 3 to 5


@pytest.fixture
def by_seed(make_row):
    """Returns single-seed rows of two datasets; VisA also has pixel AP 0.6, 0.5 and 0.4."""
    return [
        make_row(
            name, seed=seed, checkpoint=f"t-{seed}", image_auroc=value, pixel_ap=(9 - seed) / 10
        )
        for name, values in SEEDS.items()
        for seed, value in enumerate(values, start=3)
    ]


def test_mean_and_deviation_over_seeds_are_in_every_format(by_seed):
    rows = combine_seeds(by_seed)
    table = run_tables.dataset_table(rows, {})
    first = cell_of(table, 0, "image_auroc")
    assert (first.number, first.difference) == ("84.0 ± 4.0", -9.4)  # sqrt((4² + 0 + 4²) / 2)
    assert cell_of(table, 1, "image_auroc").number == "71.0 ± 1.4"  # of two values: 2 / sqrt(2)
    assert table.footnotes[-1] == "Mean ± standard deviation over 3 seeds (3 to 5)."
    assert f"\n{table.footnotes[-1]}" in formats.to_text(table)  # no row refers to it by a number
    assert "84.0 ± 4.0 (93.4, −9.4)" in formats.render("table.md", table=table)
    assert "84.0 ± 4.0<small>93.4" in formats.render("table.html", table=table)
    assert r"84.0 $\pm$ 4.0" in formats.render("table.tex", table=table, label="x")
    text = formats.to_text(table).splitlines()
    assert next(line.split()[:3] for line in text if "± std" in line) == ["±", "std", "±4.0"]
    assert max(map(len, text)) <= 100


def test_mean_over_datasets_has_the_deviation_of_the_means_of_seeds(by_seed):
    rows = combine_seeds(by_seed)
    table = run_tables.dataset_table(rows, {})
    # The means are 75, 78 and, with an undefined member, none: 3 / sqrt(2).
    assert cell_of(table, -1, "image_auroc").number == "77.5 ± 2.1"
    assert cell_of(table, -1, "pixel_ap").number == "50.0 ± 10.0"
    for partial in (
        combine_seeds(by_seed[1:]),
        [dict(row) for row in rows],
    ):  # the latter: of a file
        table = run_tables.dataset_table(partial, {})
        assert cell_of(table, -1, "pixel_ap").spread is None


def test_footnote_names_all_seeds(make_row):
    rows = combine_seeds(make_row("visa", seed=seed, image_auroc=0.8) for seed in (1, 2, 3))
    others = combine_seeds(
        make_row("visa", seed=seed, variant="sigma=8", image_auroc=value)
        for seed, value in ((7, 0.8), (9, 0.9))
    )
    fixed = make_row("visa", seed=None, auxiliary=None, checkpoint=None)
    table = run_tables.comparison_table("visa", rows, [*others, fixed], {}, {})
    assert [cell_of(table, line, "image_auroc").number for line in range(3)] == [
        "80.0 ± 0.0",
        "85.0 ± 7.1",
        "50.0",
    ]
    assert table.footnotes == (
        "Main result: trained on MVTec AD, 3 seeds (1 to 3).",
        "Mean ± standard deviation over 3 seeds (1 to 3) or 2 seeds (7, 9).",
    )


def sweep(**values):
    """Returns the entry of run.json on a sweep of keys of `method`."""
    points = [
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    ]
    labels = [", ".join(f"{key}={value}" for key, value in point.items()) for point in points]
    found = [{f"method.{key}": value for key, value in point.items()} for point in points]
    return {"points": dict(zip(labels, found, strict=True))}


def test_sweep_has_a_table_with_a_column_for_each_key(make_row):
    run = {"sweep": sweep(sigma=[4.0, 8.5], modules=["a", {"name": "b"}])}
    values = iter([(0.6, 0.8), (0.7, 0.9), (0.5, 0.5), (None, None)])
    rows = combine_seeds(make_row("visa", seed=s, image_ap=v) for s, v in enumerate((0.6, 0.8)))
    points = combine_seeds(
        make_row("visa", seed=seed, variant=label, image_ap=value)
        for label in run["sweep"]["points"]
        for seed, value in enumerate(next(values))
    )
    other = make_row("visa", variant="fixed prompts")
    _, comparisons, table = run_tables.make_tables(rows, [*points, other], run=run)
    assert [line.labels[0] for line in comparisons.lines] == ["Main result", "fixed prompts"]
    assert (table.title, table.head) == ("VisA: ablation", ("sigma", "modules"))
    assert [line.labels for line in table.lines] == [
        *[("Main result", ""), ("4", "a"), ("4", "b"), ("8.5", "a"), ("8.5", "b")]
    ]
    cells = [cell_of(table, line, "image_ap") for line in range(5)]
    assert [cell.number for cell in cells] == [
        *("70.0 ± 14.1", "70.0 ± 14.1", "80.0 ± 14.1", "50.0 ± 0.0", "–")
    ]
    assert [cell.difference for cell in cells] == [None, 0.0, 10.0, -20.0, None]
    assert [line.footnotes for line in table.lines[1:3]] == [("Same as the main result.",), ()]
    assert "| 4 [1] | a | " in formats.render("table.md", table=table)
    text = formats.to_text(table)
    assert re.search(r"^modules +AUROC", text, re.MULTILINE)
    assert re.search(r"^4, a \[1\] +50.0", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100


def test_keys_of_a_sweep_that_end_alike_are_whole(make_row):
    points = {"x": {"method.name": "tps", "backbone.name": "b", "training.epochs": 2}}
    table = run_tables.comparison_table(
        "visa", [make_row("visa")], [make_row("visa", variant="x")], {}, points
    )
    assert table.head == ("method.name", "backbone.name", "training.epochs")
    assert max(map(len, formats.to_text(table).splitlines())) <= 100


def test_single_dataset_with_categories_has_one_table(make_row):
    rows = [make_row("visa", name) for name in ("candle", "cashew", "mean")]
    assert [table.title for table in run_tables.make_tables(rows)] == ["VisA"]
    rows += [make_row("headct", name) for name in ("headct", "mean")]
    assert [table.title for table in run_tables.make_tables(rows)] == ["Datasets", "VisA"]


def test_csv_has_all_rows_and_numbers(make_row):
    rows = [make_row("mvtec_ad", image_auroc=0.9), make_row("headct", pixel_ap=None)]
    notes = {("headct", "mean"): [Note((), "No masks")]}
    text = run_tables.results_csv(
        rows, [make_row("mvtec_ad", seed=1)], notes, remark="Demonstration."
    )
    first, second, third = csv.DictReader(io.StringIO(text))
    assert (first["table"], first["image_auroc"], first["image_auroc_paper"]) == (
        "main",
        "90.0",
        "93.4",
    )
    assert first["image_auroc_difference"] == "-3.4"
    assert (second["pixel_ap"], second["notes"]) == ("", "Demonstration. No masks.")
    assert (third["table"], third["seed"], third["image_auroc_paper"]) == ("comparison", "1", "")


def test_csv_has_deviations_only_with_several_seeds(by_seed):
    rows = combine_seeds(by_seed)
    text = run_tables.results_csv(rows, [by_seed[0]])
    first, _, single = csv.DictReader(io.StringIO(text))
    assert [first[key] for key in ("seed", "seeds", "image_auroc", "image_auroc_std")] == [
        *("3", "3", "84.0", "4.0")
    ]
    assert (single["seeds"], single["image_auroc_std"]) == ("", "")
    (once,) = csv.DictReader(io.StringIO(run_tables.results_csv(by_seed[:1])))
    assert not [key for key in once if key == "seeds" or key.endswith("_std")]


@pytest.mark.parametrize(("value", "text"), [(-0.14, "−0.1"), (0.0, "±0.0"), (2.0, "+2.0")])
def test_signs(value, text):
    assert tables.signed(value) == text
