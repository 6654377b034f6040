"""Which images are worth showing: the clear ones and the mistaken ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.evaluate import Case, DatasetScores


class Kind(NamedTuple):
    """A kind of case: which label, and from which end of the scores."""

    label: int
    worst: bool
    heading: str


KINDS = (
    Kind(1, True, "Anomalies with the lowest scores"),
    Kind(0, True, "Normal images with the highest scores"),
    Kind(1, False, "Anomalies with the highest scores"),
    Kind(0, False, "Normal images with the lowest scores"),
)


def standing(case: Case, scores: DatasetScores | None) -> tuple[int, int]:
    """How many images of the other label in its category a case is confused with, and how many there are.

    For a normal image: anomalies that score no higher; for an anomaly: normal images that score no lower.
    """
    if scores is None:
        return 0, 0
    same = np.asarray(scores.categories) == case.category
    others = np.asarray(scores.scores)[same & (np.asarray(scores.labels) != case.label)]
    wrong = others >= case.score if case.label else others <= case.score
    return int(wrong.sum()), len(others)


def group_cases(
    cases: Sequence[Case], scores: DatasetScores | None, *, limit: int
) -> list[tuple[Kind, list[Case]]]:
    """The cases by kind, the most telling first; no case twice, no kind empty.

    Scores of different categories need not be comparable, so cases come by the share of the other label
    that they are mistaken for, then by score.
    """

    def rank(case: Case) -> tuple[float, float]:
        wrong, total = standing(case, scores)
        return -wrong / max(total, 1), case.score if case.label else -case.score

    groups = []
    ranked = {label: sorted((c for c in cases if c.label == label), key=rank) for label in (0, 1)}
    for kind in KINDS:
        members = ranked[kind.label]
        half = (len(members) + 1) // 2  # the other half is for the opposite kind
        chosen = members[:half] if kind.worst else members[half:][::-1]
        if chosen:
            groups.append((kind, chosen[:limit]))
    return groups
