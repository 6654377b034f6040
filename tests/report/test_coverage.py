import pytest

from zsad_jax.report.coverage import WITHOUT_MASK, find_partial, is_partial, words_on


def whole(dataset, *words):
    """What is said of both levels of a dataset."""
    return {(dataset, level): words for level in ("image", "pixel")}


def test_whole_datasets_and_those_of_which_nothing_is_published_are_not_told(make_row):
    rows = [make_row(key) for key in ("mvtec_ad", "isic", "synthetic_target", "my_parts")]
    rows += [make_row("msd_lung"), make_row("headct", "headct"), make_row("headct")]
    rows += [make_row("synthetic_target", name) for name in ("gear", "ring")]
    rows += [make_row("btad", name) for name in ("01", "02", "03", "mean")]
    assert find_partial(rows) == {}


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
def test_other_images_than_published_are_told(make_row, dataset, n_images, n_anomalous, words):
    row = make_row(dataset, n_images=n_images, n_anomalous=n_anomalous)
    assert find_partial([row]) == whole(dataset, words)


def test_other_categories_than_published_are_told(make_row):
    rows = [make_row("btad", name) for name in ("01", "03", "mean")]
    assert find_partial(rows) == whole("btad", "BTAD: 2 of 3 categories were evaluated.")
    rows[-1]["n_images"] = 511
    assert find_partial(rows) == whole(
        "btad", "BTAD: 2 of 3 categories, 511 of 741 images were evaluated."
    )
    rows = [make_row("msd_lung", name) for name in ("lung_001", "lung_003", "mean")]
    assert find_partial(rows) == whole("msd_lung", "MSD lung: 2 of 63 categories were evaluated.")
    rows = [make_row("btad", name) for name in ("01", "02", "03", "04", "mean")]
    assert find_partial(rows) == whole("btad", "BTAD: 4 categories instead of 3 were evaluated.")


def test_masks_that_are_missing_concern_pixel_metrics_only(make_row):
    rows = [make_row("rsdds_113"), make_row("visa"), make_row("headct"), make_row("my_parts")]
    counts = {"rsdds_113": 53, "headct": 100, "my_parts": 2}
    partial = find_partial(rows, {WITHOUT_MASK: counts})
    words = "RSDDs-113: 53 of 113 anomalous images have no mask."
    assert partial == {("rsdds_113", "pixel"): (words,)}
    assert is_partial(partial, "rsdds_113", "pixel_aupro")
    assert not is_partial(partial, "rsdds_113", "image_auroc")
    rows[0] |= {"n_images": 60, "n_anomalous": 60}
    partial = find_partial(rows, {WITHOUT_MASK: {"rsdds_113": 7}})
    evaluated = "RSDDs-113: 60 of 113 images were evaluated."
    assert partial["rsdds_113", "image"] == (evaluated,)
    assert words_on(partial, "rsdds_113") == [
        evaluated, "RSDDs-113: 7 of 60 anomalous images have no mask."
    ]  # fmt: skip
