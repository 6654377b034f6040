"""Tests of the loader benchmark on a few small files."""

import argparse
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.parity

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_loader

    return benchmark_loader


def test_both_sides_give_same_batches(benchmark, tmp_path):
    paths = benchmark.draw_files(tmp_path, 5, 60)
    options = argparse.Namespace(image_size=28, batch_size=2, workers=0)
    ours = list(benchmark.ours(paths, options))
    theirs = list(benchmark.theirs(paths, options))
    assert [len(batch) for batch in ours] == [2, 2, 1]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.transpose(0, 2, 3, 1), atol=1e-6)
    assert ours[0].std() > 0.1


def test_prints_measurements():
    """Runs in a subprocess, because torch's loader forks, which is unsafe with running threads."""
    flags = "--images 6 --size 40 --image_size 28 --batch_size 2 --workers 1 --repeats 1"
    done = subprocess.run(
        [sys.executable, SCRIPTS / "benchmark_loader.py", *flags.split()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for part in ("6 PNG files of 40x40", "zsad_jax ", "torch ", "ratio of the medians", "load"):
        assert part in done.stdout


def test_rejects_too_few_images(benchmark, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--images", "4", "--batch_size", "2", "--workers", "2"])
    assert end.value.code == 2
    assert "--images must be more than" in capsys.readouterr().err
