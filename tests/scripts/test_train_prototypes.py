"""Tests of prototype training on image embeddings."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "weights" / "clip_vitl14_336_cls_embeddings"


def run(train, evaluate, *options):
    script = ROOT / "scripts" / "train_prototypes.py"
    command = [sys.executable, script, "--train", train, "--evaluate", evaluate, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "mean image AUROC" in line]
    return [float(line.rpartition(" ")[2]) for line in lines]


@pytest.fixture
def embeddings(tmp_path):
    """Writes two classes whose anomalies differ in the same direction, and their mirror image."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name in ("left", "right"):
        labels = np.arange(20) % 2
        arrays[f"{name}__label"] = labels
        arrays[name] = rng.normal(size=(20, 8)) + 3 * (2 * labels - 1)[:, None] * np.eye(8)[0]
    np.savez(tmp_path / "one.npz", **arrays)
    np.savez(tmp_path / "mirror.npz", **(arrays | {n: -arrays[n] for n in ("left", "right")}))
    return tmp_path


def test_prototypes_transfer_only_in_same_direction(embeddings):
    one = embeddings / "one.npz"
    (same,) = run(one, one, "--steps", "300")
    (mirrored,) = run(one, embeddings / "mirror.npz", "--steps", "300")
    assert mirrored < 0.05 < 0.95 < same


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the embeddings are not available")
@pytest.mark.parametrize(
    ("train", "evaluate", "expected", "neighbors", "gain"),
    [
        ("visa", "mvtec_ad", 0.885, (1, 2, 3), 0.004),
        ("mvtec_ad", "visa", 0.836, (1, 8, 9), 0.015),
    ],
)
def test_real_embeddings(train, evaluate, expected, neighbors, gain):
    """Compares with independent results on the same embeddings, within one point, and adds RsCIN."""
    files = (SHARED / f"{name}_test_cls.npz" for name in (train, evaluate))
    mean, rescored = run(*files, "--neighbors", *map(str, neighbors))
    assert mean == pytest.approx(expected, abs=0.01)
    assert rescored > mean + gain
