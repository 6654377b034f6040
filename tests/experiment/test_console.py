import pathlib

import pytest

from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.experiment import console
from zsad_jax.experiment.config import Experiment
from zsad_jax.metrics import METRICS
from zsad_jax.report import Report
from zsad_jax.report.rows import RESULT_COLUMNS, result_row

FOLDER = pathlib.Path("runs/x")


@pytest.fixture
def experiment():
    return Experiment(
        method={"name": "tipsomaly"},
        backbone={"name": "tips-nano"},
        targets=("mpdd",),
        auxiliary="visa",
        checkpoints={"visa": "tipsomaly-l14-hr-visa-epoch2"},
    )


def test_setting_is_described_before_anything_is_loaded(experiment):
    lines = console.describe_setting(experiment, FOLDER).splitlines()
    assert lines == [
        "TIPSomaly on tips-nano",
        "Demo model, not for decisions.",
        "  output    runs/x",
    ]


@pytest.mark.parametrize(
    ("train", "learned", "words"),
    [
        (False, True, "  prompts   learned on VisA (tipsomaly-l14-hr-visa-epoch2)"),
        (True, True, "  train on  VisA: 1 image"),
        (False, False, "  prompts   fixed, nothing is trained"),
    ],
)
def test_inputs_are_described(experiment, monkeypatch, train, learned, words):
    both = [Sample(image=b"", category=name) for name in ("plate", "tube")]
    datasets = {"mpdd": Samples("mpdd", both), "visa": Samples("visa", both[:1])}
    object.__setattr__(experiment, "train", train)
    lines = console.describe_inputs(experiment, datasets, learned=learned).splitlines()
    assert lines[0].startswith("  devices   1 x ")
    assert lines[1:] == ["  evaluate  MPDD: 2 images, 2 categories", words]


@pytest.mark.parametrize("name", ["visa", "visa:test"])
def test_settings_of_an_auxiliary_dataset_are_described(name):
    """The test split is the usual one, whether it is named or not."""
    experiment = Experiment(
        method={"name": "aprilgan"},
        backbone={"name": "tips-nano"},
        targets=("mpdd",),
        auxiliary=name,
        train=True,
        trained_on={"visa": {"training": {"epochs": 15}, "method": {"mosaic": 0.0}}},
    )
    samples = [Sample(image=b"", category="plate")]
    datasets = {one: Samples(one, samples) for one in ("mpdd", name)}
    line = console.describe_inputs(experiment, datasets, learned=True).splitlines()[-1]
    assert line.endswith(": 1 image, epochs=15, mosaic=0.0")


def row(dataset, **fields):
    texts = {"method": "tipsomaly", "category": "mean", "variant": "", "backbone": "tips-nano"}
    values = dict.fromkeys(RESULT_COLUMNS) | dict.fromkeys(METRICS, 0.5) | texts
    return result_row(**values | {"dataset": dataset, "n_images": 9, "n_anomalous": 4} | fields)


@pytest.mark.parametrize(
    ("datasets", "titles"),
    [
        (["a"], ["Datasets, in percent", "a: comparisons, in percent"]),
        (["a", "b"], ["Datasets, in percent"]),
    ],
)
def test_results_end_with_the_paths(datasets, titles):
    report = Report(
        title="x",
        rows=[row(name) for name in datasets],
        comparisons=[row(name, variant="other") for name in datasets],
    )
    lines = console.describe_results(report, FOLDER).splitlines()
    assert [line for line in lines if "percent" in line] == titles
    assert lines[-2:] == ["  results   runs/x/results.json", "  report    runs/x/report.html"]
