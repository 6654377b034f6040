"""Which images are worth showing: the clear ones and the mistaken ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.report.base import Case, DatasetScores


class Kind(NamedTuple):
    """A kind of case: which label, and from which end of the scores."""

    label: int
    worst: bool
    heading: str

    @property
    def highest_first(self) -> bool:
        """Whether the highest scores are meant: the worst normal images, the best anomalies."""
        return self.worst == (self.label == 0)


KINDS = (
    Kind(1, True, "Anomalies with the lowest scores"),
    Kind(0, True, "Normal images with the highest scores"),
    Kind(1, False, "Anomalies with the highest scores"),
    Kind(0, False, "Normal images with the lowest scores"),
)


def choose_cases(scores: DatasetScores, *, per_category: int = 1) -> list[int]:
    """Positions of the images to show: of each category the best and the worst of either label.

    Args:
      scores: every image score of a dataset.
      per_category: how many of each kind (see `KINDS`) a category gives.

    Returns:
      Sorted positions in `scores`, each once. Equal scores are taken in order.
    """
    labels, values = np.asarray(scores.labels), np.asarray(scores.scores)
    categories = np.asarray(scores.categories)
    chosen: set[int] = set()
    for category in dict.fromkeys(scores.categories):
        for kind in KINDS:
            (members,) = np.nonzero((categories == category) & (labels == kind.label))
            order = np.argsort(
                -values[members] if kind.highest_first else values[members], kind="stable"
            )
            chosen.update(members[order[:per_category]].tolist())
    return sorted(chosen)


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
