"""Selection of the images to show: clear cases and mistakes."""

from collections.abc import Sequence

import numpy as np

from zsad_jax.evaluate import Case, DatasetScores

# Headings of the kinds of cases, their label, and whether those that are most easily mistaken come first.
KINDS = (
    ("Anomalous images most easily mistaken for normal", 1, True),
    ("Normal images most easily mistaken for anomalous", 0, True),
    ("Anomalous images that are separated best", 1, False),
    ("Normal images that are separated best", 0, False),
)


def standing(case: Case, scores: DatasetScores | None) -> tuple[int, int]:
    """Counts the images of the other label in a case's category that it is confused with, and all of them.

    For a normal image: anomalies that score no higher; for an anomaly: normal images that score no lower.
    """
    if scores is None:
        return 0, 0
    # Within the category: a score that is high for one may be usual for another.
    same = np.asarray(scores.categories) == case.category
    others = np.asarray(scores.scores)[same & (np.asarray(scores.labels) != case.label)]
    wrong = others >= case.score if case.label else others <= case.score
    return int(wrong.sum()), len(others)


def group_cases(
    cases: Sequence[Case], scores: DatasetScores | None, *, limit: int
) -> list[tuple[str, list[Case]]]:
    """Returns cases by headings of their kinds, the most telling first; no case twice, no kind empty.

    Scores of different categories need not be comparable, so cases come by the share of the other label
    that they are mistaken for, then by score.
    """

    def rank(case: Case) -> tuple[float, float]:
        wrong, total = standing(case, scores)
        return -wrong / max(total, 1), case.score if case.label else -case.score

    groups = []
    ranked = {label: sorted((c for c in cases if c.label == label), key=rank) for label in (0, 1)}
    # A single image of a label is shown once, with the mistakes.
    for heading, label, worst in KINDS:
        members = ranked[label]
        half = (len(members) + 1) // 2  # the other half is for the opposite kind
        chosen = members[:half] if worst else members[half:][::-1]
        if chosen:
            groups.append((heading, chosen[:limit]))
    return groups
