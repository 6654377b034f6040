import dataclasses

import numpy as np

from zsad_jax.evaluate import choose_cases
from zsad_jax.report.cases import group_cases, standing


def test_each_category_has_best_and_worst_case_of_each_label(scores):
    assert choose_cases(scores) == [0, 1, 2, 3, 4, 5, 6, 7]
    many = dataclasses.replace(
        scores,
        file_names=[str(i) for i in range(9)],
        categories=["gear"] * 9,
        labels=np.array([0, 0, 0, 1, 1, 1, 1, 1, 1]),
        scores=np.array([3, 1, 2, 5, 9, 6, 4, 8, 7.0]),
    )
    assert choose_cases(many) == [0, 1, 4, 6]


def test_single_label_gives_cases_of_that_label(scores):
    anomalies = dataclasses.replace(scores, labels=np.ones(8, int))
    assert choose_cases(anomalies) == [0, 3, 4, 7]


def test_standing_counts_confused_images(cases, scores):
    assert standing(cases[1], scores) == (
        1,
        2,
    )  # the anomaly at 0.4 is below the normal image at 0.5
    assert standing(cases[2], scores) == (1, 2)
    assert standing(cases[3], scores) == (0, 2)
    assert standing(cases[3], None) == (0, 0)


def test_groups_start_with_mistakes_and_repeat_no_case(cases, scores):
    groups = {
        heading: [c.file_name for c in group]
        for heading, group in group_cases(cases, scores, limit=4)
    }
    assert groups["Anomalous images most easily mistaken for normal"][0] == "gear/1.png"
    assert groups["Normal images most easily mistaken for anomalous"][0] == "gear/2.png"
    assert groups["Anomalous images that are separated best"][0] == "gear/3.png"
    assert groups["Normal images that are separated best"][0] == "gear/0.png"
    shown = [name for names in groups.values() for name in names]
    assert len(shown) == len(set(shown)) == 8


def test_groups_are_not_empty(cases, scores):
    groups = group_cases([case for case in cases if case.label][:1], scores, limit=4)
    assert [heading for heading, _ in groups] == [
        "Anomalous images most easily mistaken for normal"
    ]
