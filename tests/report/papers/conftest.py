import json

import pytest

from zsad_jax.report.papers.workdirs import columns_of


@pytest.fixture
def make_workdir(tmp_path):
    """Writes a working directory with rows, comparisons and entries of run.json."""

    def make(name, rows, comparisons=None, **run):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(rows))
        if comparisons is not None:
            (folder / "comparisons.json").write_text(json.dumps(comparisons))
        (folder / "run.json").write_text(json.dumps(run))
        return folder

    return make


@pytest.fixture
def make_ours(make_row):
    """Returns a column of a method: image AUROC and 200-step AUPRO by dataset, or by (dataset, category)."""

    def make(values, method="tipsomaly", **fields):
        rows = []
        for key, value in values.items():
            dataset, category = key if isinstance(key, tuple) else (key, "mean")
            metrics = dict.fromkeys(("image_auroc", "pixel_aupro_200step"), value)
            rows.append(make_row(dataset, category, method=method, **metrics | fields))
        (ours,) = columns_of(rows)
        return ours

    return make
