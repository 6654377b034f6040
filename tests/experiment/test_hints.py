"""Tests of the hints about missing datasets."""

import pytest

from zsad_jax.experiment import config_files, start
from zsad_jax.experiment.config import Experiment
from zsad_jax.experiment.variants import make_variants
from zsad_jax.utils.errors import UserError


def test_demo_is_suggested_only_for_methods_with_a_config(tmp_path, monkeypatch):
    experiment = Experiment(
        method={"name": "clip"},
        backbone={"name": "clip-nano"},
        targets=("visa",),
        data_dir=str(tmp_path),
    )
    with pytest.raises(UserError, match=r"without downloads: .* --config configs/clip\.py:demo"):
        start.open_datasets(make_variants(experiment))
    monkeypatch.setattr(config_files, "included", dict)  # as for a registered method
    with pytest.raises(UserError, match="visa") as error:
        start.open_datasets(make_variants(experiment))
    assert "configs/" not in str(error.value)
