"""Tests of the benchmarks of training and of grids on tiny models."""

import argparse
import json
import pathlib

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
SMALL = (
    "--size",
    "nano",
    "--image_size",
    "28",
    "--images",
    "4",
    "--batch_size",
    "2",
    "--epochs",
    "1",
)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_training

    # Variables that the benchmark sets are restored afterwards.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    return benchmark_training


@pytest.mark.parity
def test_both_sides_have_the_same_losses(benchmark, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers.models.tipsv2", reason="transformers without TIPSv2")
    options = argparse.Namespace(
        method="tipsomaly", options={}, backbone="tips", size="nano", image_size=42, dtype="float32",
        batch_size=2, folder=tmp_path,
    )  # fmt: skip
    benchmark.write_weights(options)
    benchmark.draw_dataset(tmp_path / "images", 3, 42)
    ours = benchmark.Ours(options)
    ours.export()
    mine, others = ours.train("none", [0], 2), benchmark.Theirs(options).train(2)
    assert len(mine) == len(others) == 4
    assert len(set(mine)) == 4
    np.testing.assert_allclose(mine, others, rtol=1e-4)


def test_reports_ratios_to_the_last_side(benchmark, monkeypatch, tmp_path, capsys):
    calls = []

    class Side:
        """A side that takes two seconds per seed and epoch."""

        def __init__(self, *_):
            pass

        def time(self, what, cache, seeds, epochs):
            calls.append((what, cache, seeds, epochs))
            return benchmark.Turn(2.0 * len(seeds) * epochs, 1.0, [0.5] * epochs)

        def close(self):
            pass

    monkeypatch.setattr(benchmark, "Side", Side)
    out = tmp_path / "results.json"
    options = "--method", "anomalyclip", "--parts", "cache", "seeds", "--seeds", "3"
    assert benchmark.main([*SMALL, *options, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["setting"]["method"] == "anomalyclip"
    assert [row["side"] for row in found["results"]] == [
        "features in memory", "encoded in every epoch", "together", "one after another",
    ]  # fmt: skip
    assert [row["seconds"] for row in found["results"]] == [2, 2, 6, 6]
    assert [row["processor_ratio"] for row in found["results"]] == [1, 1, 1 / 3, 1]
    of_seeds = [seeds for _, cache, seeds, _ in calls if cache == "disk"]
    assert of_seeds == [[0], [0, 1, 2], [0], [1], [2]]
    assert capsys.readouterr().out.count("| seeds |") == 2


def test_rejects_a_method_without_peer(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*SMALL, "--method", "tps", "--parts", "pytorch"])
    assert "no PyTorch side for training tps" in capsys.readouterr().err
