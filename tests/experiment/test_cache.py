"""Tests of stored evaluations."""

import numpy as np
import pytest

from zsad_jax import load_backbone
from zsad_jax.evaluate import Evaluation, Scored
from zsad_jax.experiment import cache
from zsad_jax.experiment.config import Experiment
from zsad_jax.metrics import Metrics, Note


def test_metrics_and_notes_load_unchanged(tmp_path):
    nan = float("nan")
    reason = (
        "2 anomalous images have no usable mask and are excluded from pixel metrics (9 images used)"
    )
    notes = (Note((), reason, num_without_mask=2), Note(("pixel_ap",), "doubtful"))
    found = Metrics(
        {"image_auroc": 0.5, "pixel_ap": nan}, {"pixel_ap": "all pixels are normal"}, notes
    )
    scored = Scored({"max": np.array([0.25])}, {"gear": {"max": found}})
    names = (("a.png",), ("gear",))
    written = Evaluation("visa", np.array([3]), *names, np.array([1]), scored, (), ())
    cache.save(tmp_path / "one.npz", written)
    read = cache.load(tmp_path / "one.npz").scored.metrics["gear"]["max"]
    assert read.values == {"image_auroc": 0.5, "pixel_ap": read.values["pixel_ap"]}
    assert np.isnan(read.values["pixel_ap"])
    assert (read.reasons, read.notes) == (found.reasons, notes)
    assert all(isinstance(note, Note) for note in read.notes)


def test_training_depends_on_names_in_prompts():
    backbone = load_backbone("clip-nano")
    experiment = Experiment(
        method={"name": "coop"},
        backbone={"name": "clip-nano"},
        targets=("mpdd",),
        auxiliary="visa",
        train=True,
    )
    method, keys = experiment.main_method(backbone), []
    for names in (("pcb",), ("pcb",), ("circuit board",)):
        dataset = "visa", "the same files", names
        keys.append(cache.training_key(experiment, backbone, method, dataset, None))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    "stored", ['{"figures": []}', "[]", "{", '{"metrics": [1], "score_names": 5}']
)
def test_evaluation_of_other_format_is_recomputed(tmp_path, stored):
    text = np.frombuffer(stored.encode(), np.uint8)
    np.savez(tmp_path / "old.npz", text=text)
    assert cache.load(tmp_path / "old.npz") is None
