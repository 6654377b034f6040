"""Finished evaluations on disk, and the keys under which results are stored.

A killed run resumes from them, and a repeated run computes nothing.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

import zsad_jax
from zsad_jax.backbones import Backbone
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.backbones.load import locate_files
from zsad_jax.backbones.registry import WeightFiles
from zsad_jax.data.issues import Issue
from zsad_jax.detector import Detector
from zsad_jax.evaluate import Case, Contender, Evaluation, Scored
from zsad_jax.experiment.config import Experiment, to_json
from zsad_jax.methods import Method
from zsad_jax.methods.shared import prompt_files
from zsad_jax.metrics import Metrics, Note
from zsad_jax.train import SWEPT, Member
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.records import fingerprint, parse_json

CASE_FIELDS = ("category", "file_name", "label", "score")


def training_key(
    experiment: Experiment,
    backbone: Backbone,
    method: Method,
    dataset: Sequence[Any],
    member: Member | None,
) -> str:
    """Returns the key of parameters learned on a dataset, of which all that matters is given.

    Without a member, it is the key of what trainings that run together have in common.
    """
    # Targets, comparisons and the batch size of the evaluation do not change what is learned, and are not
    # part of the key.
    common = dataclasses.asdict(experiment.training_for(method))
    for name in SWEPT:
        del common[name]
    return fingerprint(
        _model(experiment, backbone),
        [method.name, method.config.training_options(), common],
        # Names of categories in prompts change what is learned but no file.
        dataset,
        member and [member.seed, *(getattr(member.config, name) for name in SWEPT)],
        experiment.features_config.dtype,
        # A version may change the numbers.
        zsad_jax.__version__,
    )


def evaluation_key(
    experiment: Experiment, backbone: Backbone, contender: Contender, dataset: Sequence[Any]
) -> str:
    """Returns the key of the evaluation of a method on a dataset, of which all that matters is given."""
    return fingerprint(
        _model(experiment, backbone),
        # Learned prompts enter by their digest, so that it does not matter where they come from.
        [*_method(contender.method), prompt_files.digest(contender.params)],
        dataset,
        [experiment.exact_metrics, experiment.features_config.dtype],
        zsad_jax.__version__,
        *([contender.references.digest] if contender.references else []),
    )


def prediction_key(experiment: Experiment, detector: Detector) -> str:
    """Returns the key of all that a detector's scores and maps depend on, apart from image and category."""
    return fingerprint(
        _model(experiment, detector.backbone),
        [*_method(detector.method), detector.image_score],
        prompt_files.digest(detector.params),
        zsad_jax.__version__,
    )


def inputs_key(experiment: Experiment, prompts: prompt_files.PromptFile) -> str:
    """Returns the key of the options of a detector and, by place, size and date, of its files.

    Unlike `prediction_key`, it is known before the weights are read. Missing released ones are downloaded.
    """
    config, weights = to_json(experiment), locate_files(**experiment.backbone_options)
    paths = [*weights, prompts.path if prompts.source else None]
    # The method and the backbone tell which prompts are included.
    named = None if prompts.included_with else prompts.source or None
    return fingerprint(
        zsad_jax.__version__,
        [config["method"], experiment.backbone_options, config["image_score"]],
        named,
        # Size and date instead of a digest: reading the weights is what this avoids.
        [_stamp(path) for path in paths if path is not None],
    )


def _stamp(path: files.PathLike) -> list[Any]:
    try:
        found = os.stat(path)
    except OSError:
        return [os.fspath(path)]
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns]


def _model(experiment: Experiment, backbone: Backbone) -> list[Any]:
    # The digests cover the files, wherever they are; options such as the image size are not part of them.
    given = experiment.backbone_options.items()
    options = {name: value for name, value in given if name not in WeightFiles._fields}
    return [backbone.digest, options, backbone.tokenizer_digest]


def _method(method: Method) -> tuple[str, dict[str, Any]]:
    return method.name, dataclasses.asdict(method.config)


def save(path: files.PathLike, evaluation: Evaluation) -> None:
    """Writes an evaluation as one npz file of plain arrays and a JSON text."""
    arrays: dict[str, np.ndarray] = {"positions": evaluation.positions, "labels": evaluation.labels}
    for i, case in enumerate(evaluation.cases):
        arrays[f"case/{i}/image"] = case.image
        arrays[f"case/{i}/map"] = case.anomaly_map
        if case.mask is not None:
            arrays[f"case/{i}/mask"] = case.mask
    for name, scores in evaluation.scored.image_scores.items():
        arrays[f"scores/{name}"] = scores
    text = {
        "dataset": evaluation.dataset,
        "file_names": evaluation.file_names,
        "categories": evaluation.categories,
        "metrics": evaluation.scored.metrics,
        "score_names": list(evaluation.scored.image_scores),
        "cases": [{name: getattr(case, name) for name in CASE_FIELDS} for case in evaluation.cases],
        "issues": evaluation.issues,
        "num_unreadable": evaluation.num_unreadable,
    }
    # As UTF-8 bytes: NumPy's own texts take four bytes a character.
    arrays["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    # A file that a kill has cut off would be taken for a finished result.
    with files.replaced(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # as in prompt_files.save


def load(path: files.PathLike) -> Evaluation | None:
    """Reads the evaluation that `save` wrote; None if there is none, or it cannot be read."""
    if not pathlib.Path(path).exists():
        return None
    try:
        return _decode(read_arrays(path))
    # Damaged, or of an earlier form: computing it again is simpler and safer than converting it.
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        logging.warning("%s cannot be read and is computed again.", path)
        return None


def _decode(arrays: dict[str, np.ndarray]) -> Evaluation:
    text = parse_json(arrays["text"].tobytes())
    found = {
        category: {name: _read_metrics(*one) for name, one in by_score.items()}
        for category, by_score in text["metrics"].items()
    }
    cases = [
        Case(
            dataset=text["dataset"],
            image=arrays[f"case/{i}/image"],
            anomaly_map=arrays[f"case/{i}/map"],
            mask=arrays.get(f"case/{i}/mask"),
            **fields,
        )
        for i, fields in enumerate(text["cases"])
    ]
    return Evaluation(
        dataset=text["dataset"],
        positions=arrays["positions"],
        file_names=tuple(text["file_names"]),
        categories=tuple(text["categories"]),
        labels=arrays["labels"],
        scored=Scored({name: arrays[f"scores/{name}"] for name in text["score_names"]}, found),
        cases=tuple(cases),
        issues=tuple(Issue(*issue) for issue in text["issues"]),
        num_unreadable=text["num_unreadable"],
    )


def _read_metrics(
    values: dict[str, float], reasons: dict[str, str], notes: list[list[Any]]
) -> Metrics:
    """Returns metrics that JSON holds as lists."""
    return Metrics(values, reasons, tuple(Note(tuple(names), *fields) for names, *fields in notes))
