"""Finished evaluations on disk, so that a killed run goes on and a repeated one computes nothing."""

import json
import pathlib
from typing import Any

import numpy as np
from absl import logging

from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.data.issues import Issue
from zsad_jax.evaluate import Case, Evaluation, Scored
from zsad_jax.metrics import Metrics, Note
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError


def save(path: files.PathLike, evaluation: Evaluation) -> None:
    """Writes an evaluation as one npz file of plain arrays and a JSON text."""
    arrays: dict[str, np.ndarray] = {"positions": evaluation.positions, "labels": evaluation.labels}
    cases: list[dict[str, Any]] = []
    for i, case in enumerate(evaluation.cases):
        arrays[f"case/{i}/image"] = case.image
        arrays[f"case/{i}/map"] = case.anomaly_map
        if case.mask is not None:
            arrays[f"case/{i}/mask"] = case.mask
        names = ("category", "file_name", "label", "score")
        cases.append({name: getattr(case, name) for name in names})
    for i, scored in enumerate(evaluation.scored):
        for name, scores in scored.image_scores.items():
            arrays[f"scores/{i}/{name}"] = scores
    text = {
        "dataset": evaluation.dataset,
        "file_names": evaluation.file_names,
        "categories": evaluation.categories,
        "metrics": [_metrics_to_json(scored) for scored in evaluation.scored],
        "score_names": [list(scored.image_scores) for scored in evaluation.scored],
        "cases": cases,
        "faults": evaluation.issues,
        "num_unreadable": evaluation.num_unreadable,
    }
    arrays["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    with files.replaced(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # as in learned.save


def load(path: files.PathLike) -> Evaluation | None:
    """The evaluation that `save` wrote; None when there is none, or none that can be read."""
    if not pathlib.Path(path).exists():
        return None
    try:
        arrays = read_arrays(path)
    except UserError as error:
        logging.warning("%s It is computed again.", error)
        return None
    text = json.loads(arrays["text"].tobytes())
    if "metrics" not in text:  # written before notes were records
        return None
    return Evaluation(
        dataset=text["dataset"],
        positions=arrays["positions"],
        file_names=tuple(text["file_names"]),
        categories=tuple(text["categories"]),
        labels=arrays["labels"],
        scored=tuple(
            Scored(
                {name: arrays[f"scores/{i}/{name}"] for name in names}, _metrics_from_json(stored)
            )
            for i, (names, stored) in enumerate(
                zip(text["score_names"], text["metrics"], strict=True)
            )
        ),
        cases=tuple(
            Case(
                dataset=text["dataset"],
                image=arrays[f"case/{i}/image"],
                anomaly_map=arrays[f"case/{i}/map"],
                mask=arrays.get(f"case/{i}/mask"),
                **fields,
            )
            for i, fields in enumerate(text["cases"])
        ),
        issues=tuple(Issue(*issue) for issue in text["faults"]),
        num_unreadable=text["num_unreadable"],
    )


def _metrics_to_json(scored: Scored) -> dict[str, Any]:
    # JSON has no NaN.
    return {
        category: {
            name: {
                "values": {k: None if np.isnan(v) else v for k, v in found.values.items()},
                "reasons": found.reasons,
                "notes": found.notes,
            }
            for name, found in by_score.items()
        }
        for category, by_score in scored.metrics.items()
    }


def _metrics_from_json(stored: dict[str, Any]) -> dict[str, dict[str, Metrics]]:
    return {
        category: {
            name: Metrics(
                {k: float("nan") if v is None else v for k, v in found["values"].items()},
                found["reasons"],
                tuple(Note(tuple(metrics), *fields) for metrics, *fields in found["notes"]),
            )
            for name, found in by_score.items()
        }
        for category, by_score in stored.items()
    }
