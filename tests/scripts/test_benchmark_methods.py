"""Tests of the method benchmark on a tiny CLIP with random values."""

import argparse
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

pytestmark = pytest.mark.parity

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
IMAGE_SIZE = 42
# These methods use only words that are known without a merge file.
METHODS = ("anomalyclip", "faprompt", "tps", "vip2clip")


@pytest.fixture(scope="module")
def scripts():
    """Makes the scripts importable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture(scope="module")
def weights(scripts, tmp_path_factory):
    from make_random_weights import clip_shapes, write_arrays

    common = {"width": 128, "depth": 2, "num_heads": 2, "mlp_dim": 192, "embed_dim": 32}
    vision = common | {"patch_size": 14, "grid": 4}
    text = common | {"vocabulary": 49_408, "length": 77}
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_arrays(path, clip_shapes(vision, text), np.random.default_rng(0))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}.png")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_agree(scripts, weights, images, tmp_path, method):
    import benchmark_methods

    options = argparse.Namespace(
        weights=weights, tokenizer=None, images=sorted(images.iterdir()), image_size=IMAGE_SIZE,
        batch_size=2, parts=(),
    )  # fmt: skip
    ours, theirs = (side(options, method, tmp_path) for side in benchmark_methods.SIDES)
    pairs = [(ours.predict(0, 2), theirs.predict(0, 2))]
    difference, span = benchmark_methods.compare_values(pairs)
    assert 0 < difference <= 1e-3 * span


def test_prints_measurements(weights, images):
    command = [sys.executable, SCRIPTS / "benchmark_methods.py", "--weights", weights]
    command += ["--images", images, "--count", "2", "--image_size", IMAGE_SIZE]
    command += ["--methods", "anomalyclip", "--turns", "1", "--cores", "1"]
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in ("anomalyclip, images to maps", "anomalyclip, features to maps", "peak memory"):
        assert part in done.stdout


def test_rejects_too_few_images(weights, images):
    command = [sys.executable, SCRIPTS / "benchmark_methods.py", "--weights", str(weights)]
    done = subprocess.run(
        [*command, "--images", str(images)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "has 2 images" in done.stderr
