"""The rows of results.json and comparisons.json, made of evaluations."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zsad_jax import metrics
from zsad_jax.backbones import Backbone
from zsad_jax.data.dataset import Dataset
from zsad_jax.evaluate import Contender, Evaluation
from zsad_jax.experiment.run_info import changed_options
from zsad_jax.metrics import Note
from zsad_jax.report import Row, result_row
from zsad_jax.report.rows import MEAN, OPTION_COLUMNS


class Prompts(NamedTuple):
    """The parameters of a contender ({}: nothing is learned), and what results record of them.

    `checkpoint` names the file, or the folder of the training. `seed` is that of the training, or of the draw
    of references. It and `folder` are None if the parameters were loaded.
    """

    params: Any = {}  # noqa: RUF012 - never written to
    auxiliary: str | None = None
    checkpoint: str | None = None
    epoch: int | None = None
    seed: int | None = None
    folder: pathlib.Path | None = None


class Result(NamedTuple):
    """A contender on a target, and its evaluation."""

    contender: Contender
    prompts: Prompts
    backbone: Backbone
    evaluation: Evaluation


class TargetResults(NamedTuple):
    """A target's evaluation and its rows: of the main setting by the chosen image score, and of all others.

    Categories come first, then their mean; every seed has rows of its own. `notes` holds remarks on the main
    rows, by (dataset, category).
    """

    evaluation: Evaluation
    rows: list[Row]
    comparisons: list[Row]
    notes: dict[tuple[str, str], list[Note]]


def collect(found: Sequence[Result], dataset: Dataset, image_score: str) -> TargetResults:
    """Returns the rows of a target's results, the main one first; `image_score` is the score of its rows."""
    results = TargetResults(found[0].evaluation, [], [], {})
    # A category of this name would take the row of the mean.
    labels = {name: f"{name} (category)" if name == MEAN else name for name in dataset.categories}
    class_names = dict(zip(labels.values(), dataset.prompt_names, strict=True))
    for contender, prompts, backbone, evaluation in found:
        categories = np.array([labels[name] for name in evaluation.categories])
        scored = evaluation.scored
        for score in scored.image_scores:
            by_category = {labels[name]: one[score] for name, one in scored.metrics.items()}
            by_category[MEAN] = metrics.mean_over(
                {name: one.values for name, one in by_category.items()}
            )
            # results.json has one row per dataset and category, so all other image scores are comparisons.
            main = not contender.label and score == image_score
            for category, one in by_category.items():
                # The mean over categories counts every image.
                members = (categories == category) | (category == MEAN)
                row = result_row(
                    **_identity(contender, prompts, backbone),
                    **one.values,
                    image_score=score,
                    dataset=dataset.name,
                    category=category,
                    class_name=class_names.get(category),
                    n_images=int(members.sum()),
                    n_anomalous=int(evaluation.labels[members].sum()),
                )
                (results.rows if main else results.comparisons).append(row)
                reasons = [Note((metric,), reason) for metric, reason in one.reasons.items()]
                # Those of the first seed: masks, the usual reason, are the same for all.
                if main and evaluation is results.evaluation and (reasons or one.notes):
                    results.notes[dataset.name, category] = [*reasons, *one.notes]
    return results


def _identity(contender: Contender, prompts: Prompts, backbone: Backbone) -> Row:
    """Returns the columns that say what was evaluated."""
    method = contender.method
    # Two ways of running a method must differ in some column. Those of several seeds differ in theirs.
    elsewhere = {*OPTION_COLUMNS, method.config.draws if prompts.seed is not None else None}
    changed = ", ".join(
        f"{name}={value}"
        for name, value in sorted(changed_options(method).items())
        if name not in elsewhere  # not repeated in `variant`
    )
    return {
        "method": method.name,
        "variant": contender.label or changed,
        "backbone": backbone.name,
        "auxiliary": prompts.auxiliary,
        "checkpoint": prompts.checkpoint,
        "seed": prompts.seed,
        "epoch": prompts.epoch,
        "image_size": backbone.preprocess.image_size,
        **{name: getattr(method.config, name, None) for name in OPTION_COLUMNS},
        **({"shots": contender.references.shots} if contender.references else {}),
    }
