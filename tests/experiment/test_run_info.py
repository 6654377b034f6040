import json

import numpy as np

from zsad_jax import metrics
from zsad_jax.evaluate import Evaluation, Scored
from zsad_jax.experiment import run_info


def evaluation(dataset, *num_without_mask):
    """Returns an evaluation with two scores and these numbers of missing masks per category."""
    found = {}
    for category, without in enumerate(num_without_mask):
        labels = np.array([0, 1, 1, 1])
        masks = np.zeros((4, 2, 2), bool)
        masks[1:, 0, 0] = True
        scores = {"first": np.arange(4.0), "second": np.arange(4.0)}
        has_mask = np.arange(4) < 4 - without
        maps = np.arange(16.0).reshape(4, 2, 2)
        state = metrics.category.update(
            metrics.category.init(exact=True), scores, labels, maps, masks, has_mask
        )
        found[f"part {category}"] = {
            name: metrics.category.compute(state, image_score=name) for name in scores
        }
    return Evaluation(dataset, np.zeros(0, int), (), (), labels, Scored({}, found), (), ())


def test_counts_missing_masks_where_pixel_metrics_need_them():
    evaluations = [
        evaluation("ksdd", 2, 0, 1),
        evaluation("visa", 0, 0),
        evaluation("headct", 3),
        evaluation("my_parts", 3),
    ]
    assert run_info.count_without_mask(evaluations) == {"ksdd": 3}


def test_run_record_includes_missing_masks_only_if_any():
    missing = run_info.describe_evaluations([evaluation("ksdd", 2)])
    assert json.loads(json.dumps(missing))["anomalous_without_mask"] == {"ksdd": 2}
    assert "anomalous_without_mask" not in run_info.describe_evaluations([])


def test_run_record_has_waiting_devices_of_new_evaluations():
    new = evaluation("visa", 0)._replace(device_wait_share=0.123456)
    found = run_info.describe_evaluations([new, evaluation("ksdd", 0)])
    assert found["device_wait_share"] == {"visa": 0.1235}
