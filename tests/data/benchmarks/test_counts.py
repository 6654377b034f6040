"""Tests of counts against published ones, which are not always known per category."""

import pytest

from zsad_jax.data.benchmarks.counts import ALL, compare_counts, count, total
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.inspect.stock import tabulate_categories

OF_EACH = {"a": (3, 1), "b": (2, 2)}
OF_ALL = {ALL: (5, 3)}
NAMES_AND_ALL = {ALL: (5, 3), "a": None, "b": None}
NAMES = {"a": None, "b": None}
PUBLISHED = (OF_EACH, OF_ALL, NAMES_AND_ALL, NAMES)


@pytest.mark.parametrize("published", PUBLISHED)
def test_equal_counts_have_no_differences(published):
    assert compare_counts({"test": OF_EACH}, {"test": published}) == []
    assert total(published) == (None if published is NAMES else (5, 3))


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (OF_EACH, ["test/b: 0 normal and 0 anomalous images instead of 2 and 2"]),
        (OF_ALL, ["test: 3 normal and 1 anomalous images instead of 5 and 3"]),
        (
            NAMES_AND_ALL,
            [
                "test: 3 normal and 1 anomalous images instead of 5 and 3",
                "test/b: this category has no images",
            ],
        ),
        (NAMES, ["test/b: this category has no images"]),
    ],
)
def test_reports_missing_category(published, expected):
    assert compare_counts({"test": {"a": (3, 1)}}, {"test": published}) == expected


@pytest.mark.parametrize("published", PUBLISHED)
def test_reports_unknown_category_where_others_are_published(published):
    found = {"test": OF_EACH | {"c": (1, 0)}}
    names = [one.split(":")[0] for one in compare_counts(found, {"test": published})]
    of_all = ["test"] if ALL in published else []
    assert names == of_all + (["test/c"] if published is not OF_ALL else [])


@pytest.mark.parametrize("name", ["dtd_synthetic", "real_iad"])
def test_reports_missing_categories_where_only_totals_are_published(
    name, make_miniature, prepare, tmp_path
):
    facts = DATASETS[name]
    make_miniature(name, tmp_path / "official")
    dataset = prepare(name, tmp_path / "official")
    found = {"test": count(dataset)}
    absent = [one for one in facts.categories if one not in found["test"]]
    assert len(absent) == len(facts.categories) - 2
    differences = compare_counts(found, {"test": facts.counts["test"]})
    assert [one for one in differences if "no images" in one] == [
        f"test/{one}: this category has no images" for one in absent
    ]
    table = tabulate_categories({"x": found}, {"x": facts.counts})
    rows = {row[1]: row[-2:] for row in table.rows}
    assert {rows[one] for one in absent} == {((0, 0), None)}
    assert rows["all"] == (total(found["test"]), facts.counts["test"][ALL])
