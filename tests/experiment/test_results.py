import numpy as np

from zsad_jax import load_backbone
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.evaluate import Contender, Evaluation, Scored
from zsad_jax.experiment.results import Prompts, Result, collect
from zsad_jax.methods import make_method
from zsad_jax.metrics.result import Metrics
from zsad_jax.report.rows import METRIC_COLUMNS


def test_category_called_mean_keeps_its_row():
    names = ("mean", "mean", "nut")
    dataset = Samples("parts", [Sample(image=f"{i}", category=one) for i, one in enumerate(names)])
    values = {"mean": 0.5, "nut": 1.0}
    found = {
        name: {"mean": Metrics(dict.fromkeys(METRIC_COLUMNS, value), {})}
        for name, value in values.items()
    }
    scored = Scored({"mean": np.zeros(3)}, found)
    labels = np.array([0, 1, 1])
    evaluation = Evaluation("parts", np.arange(3), names, names, labels, scored, (), ())
    backbone = load_backbone("tips-nano")
    contender = Contender(make_method("clip", backbone), {})
    rows = collect([Result(contender, Prompts(), backbone, evaluation)], dataset, "mean").rows
    columns = ("category", "class_name", "n_images", "n_anomalous", "image_auroc")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("mean (category)", "object", 2, 1, 0.5),
        ("nut", "object", 1, 1, 1.0),
        ("mean", None, 3, 2, 0.75),
    ]
