import numpy as np
import pytest

from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.issues import Issue
from zsad_jax.evaluate import Case, DatasetScores
from zsad_jax.methods import METHODS, config_class
from zsad_jax.methods.shared.config import Recipe
from zsad_jax.metrics import Note
from zsad_jax.report import Report, result_row
from zsad_jax.report.rows import RESULT_COLUMNS


@pytest.fixture
def make_row():
    """Returns a row with the published setting and all images of a benchmark; ten images for other datasets."""

    def make(dataset, category="mean", **fields):
        about = DATASETS.get(dataset) if category == "mean" else None
        normal, anomalous = (about and about.published) or (6, 4)
        method = fields.get("method", "tipsomaly")
        options = config_class(method)() if method in METHODS else None
        recipe = options.recipe if options else Recipe()  # papers also compare with other methods
        family = "medical" if dataset in recipe.method_for else "industrial"
        values = dict.fromkeys(RESULT_COLUMNS, 0.5) | {
            "method": method,
            "variant": "",
            "backbone": recipe.backbone["name"],
            "auxiliary": "visa" if dataset == "mvtec_ad" else "mvtec_ad",
            "checkpoint": "trained",
            "seed": 0,
            "epoch": 2,
            "class_name": "object",
            "prompt_family": family if method == "tipsomaly" else None,
            "image_size": recipe.backbone["image_size"],
            "sigma": getattr(options, "sigma", None),
            "image_score": recipe.image_score or "global",
            "n_images": normal + anomalous,
            "n_anomalous": anomalous,
        }
        return result_row(**values | {"dataset": dataset, "category": category} | fields)

    return make


@pytest.fixture
def scores():
    """Returns scores of two categories of four images; in "gear", normal 2.png is above anomalous 1.png."""
    return DatasetScores(
        dataset="synthetic_target",
        file_names=[f"{category}/{i}.png" for category in ("gear", "ring") for i in range(4)],
        categories=["gear"] * 4 + ["ring"] * 4,
        labels=np.array([0, 1, 0, 1, 0, 1, 0, 1]),
        scores=np.array([0.1, 0.4, 0.5, 0.9, 0.2, 0.7, 0.3, 0.8]),
    )


@pytest.fixture
def cases(scores):
    rng = np.random.default_rng(0)
    made = []
    for i, name in enumerate(scores.file_names):
        mask = np.zeros((40, 60), bool)
        mask[10:20, 20:40] = scores.labels[i] == 1
        made.append(
            Case(
                dataset=scores.dataset,
                category=scores.categories[i],
                file_name=name,
                label=int(scores.labels[i]),
                score=float(scores.scores[i]),
                image=rng.integers(0, 256, (40, 60, 3)).astype(np.uint8),
                anomaly_map=rng.random((10, 15)).astype(np.float32),
                mask=mask,
            )
        )
    return made


@pytest.fixture
def report(make_row, scores, cases):
    dataset = scores.dataset
    return Report(
        title="TIPSomaly <on> tips-nano",
        rows=[make_row(dataset, category) for category in ("gear", "ring", "mean")],
        comparisons=[make_row(dataset, variant="fixed prompts", auxiliary=None, checkpoint=None)],
        notes={(dataset, "ring"): [Note(("pixel_ap",), "no masks")]},
        scores=[scores],
        cases=cases,
        history=[{"step": i, "epoch": 1, "loss": 1 / i} for i in range(1, 5)],
        issues={dataset: [Issue("image_unreadable", "ring/<9>.png", "the file is truncated")]},
        config_text='{"seed": 0}',
        run={"total_seconds": 150.0, "peak_memory_bytes": 2**30, "parts_seconds": {"start": 1.5}},
        demonstration=True,
        skipped={"visa": "not prepared"},
    )
