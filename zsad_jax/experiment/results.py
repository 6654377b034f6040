"""From evaluations to the rows of results.json and comparisons.json."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax import metrics
from zsad_jax.backbones import Backbone
from zsad_jax.data.dataset import Dataset
from zsad_jax.evaluate import Contender
from zsad_jax.experiment.config import describe_variant
from zsad_jax.experiment.run import Evaluated, Learned
from zsad_jax.metrics import Metrics, Note
from zsad_jax.report import Row, result_row


class Results(NamedTuple):
    """One target's results.

    Attributes:
      rows: for results.json: the main contender by the chosen image score, categories then mean.
      comparisons: the same for the other contenders and image scores.
      notes: (dataset, category) -> what must be said of the main rows.
    """

    rows: list[Row]
    comparisons: list[Row]
    notes: dict[tuple[str, str], list[Note]]


def collect(
    evaluated: Evaluated, backbone: Backbone, dataset: Dataset, image_score: str
) -> Results:
    """The rows of a target's evaluation.

    Args:
      evaluated: what was found.
      backbone: by which model.
      dataset: on what.
      image_score: the score of the main rows.
    """
    results = Results([], [], {})
    for contender, learned, scored in zip(
        evaluated.contenders, evaluated.learned, evaluated.evaluation.scored, strict=True
    ):
        for score in scored.image_scores:
            found = {category: by_score[score] for category, by_score in scored.metrics.items()}
            found["mean"] = metrics.mean_over({name: one.values for name, one in found.items()})
            identity = _identity(contender, learned, backbone, score)
            rows = _rows(found, evaluated, dataset, identity)
            if not contender.variant and score == image_score:
                results.rows.extend(rows)
                results.notes.update(_notes(dataset.name, found))
            else:
                results.comparisons.extend(rows)
    return results


def _identity(contender: Contender, learned: Learned, backbone: Backbone, score: str) -> Row:
    """The columns that say what was evaluated."""
    config = contender.method.config
    return {
        "method": contender.method.name,
        "variant": contender.variant or describe_variant(contender.method),
        "backbone": backbone.name,
        "auxiliary": learned.auxiliary,
        "checkpoint": learned.checkpoint,
        "seed": learned.seed,
        "epoch": learned.epoch,
        "prompt_family": getattr(config, "prompt_family", None),
        "image_size": backbone.preprocess.image_size,
        "sigma": getattr(config, "sigma", None),
        "image_score": score,
    }


def _rows(
    found: dict[str, Metrics], evaluated: Evaluated, dataset: Dataset, identity: Row
) -> Sequence[Row]:
    evaluation = evaluated.evaluation
    categories = np.array(evaluation.categories)
    class_names = dict(zip(dataset.categories, dataset.prompt_names, strict=True))
    rows = []
    for category, one in found.items():
        members = np.ones(len(categories), bool) if category == "mean" else categories == category
        row = result_row(
            **identity,
            **one.values,
            dataset=dataset.name,
            category=category,
            class_name=class_names.get(category),
            n_images=int(members.sum()),
            n_anomalous=int(evaluation.labels[members].sum()),
        )
        rows.append(row)
    return rows


def _notes(dataset: str, found: dict[str, Metrics]) -> dict[tuple[str, str], list[Note]]:
    notes = {
        (dataset, category): [
            *(Note((metric,), reason) for metric, reason in one.reasons.items()),
            *one.notes,
        ]
        for category, one in found.items()
    }
    return {key: some for key, some in notes.items() if some}
