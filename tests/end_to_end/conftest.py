"""Fixtures of the end-to-end parity tests: the main command on image files, and readers of its outputs."""

import json

import numpy as np
import pytest
from PIL import Image

from zsad_jax import main
from zsad_jax.experiment import config as experiment_config
from zsad_jax.experiment import run as runner
from zsad_jax.experiment import start as experiment_start

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({config!r})
"""


class Run:
    """The evaluations of a finished run, the main one first, and its outputs in its working directory."""

    def __init__(self, workdir, evaluations):
        self.workdir = workdir
        self.evaluations = evaluations

    def rows(self, name, **columns):
        """Returns the rows of results.json or comparisons.json with these column values, by category."""
        rows = json.loads((self.workdir / name).read_text())
        rows = [row for row in rows if columns.items() <= row.items()]
        by_category = {row["category"]: row for row in rows}
        assert len(by_category) == len(rows)
        return by_category

    def image_scores(self, variant=""):
        """Returns the image scores of a comparison, or of the main result, by name."""
        # ConfigDict sorts its keys, so their order differs from the test's config.
        comparisons = json.loads((self.workdir / "config.json").read_text())["comparisons"]
        return self.evaluations[["", *comparisons].index(variant)].scored.image_scores

    def params(self):
        """Returns the stored parameters by their path in the parameter tree."""
        (path,) = self.workdir.glob("training/*/prompts.npz")
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def losses(self):
        """Returns the loss terms of each training step."""
        (path,) = self.workdir.glob("training/*/curves.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def run_main(run_app):
    """Returns a function that runs the main command with a config in this process, as a shell would.

    `init` is a parameter tree that replaces the random initial parameters of the main method, because a
    reference implementation draws different ones.
    """

    def run(folder, config, *, init=None):
        folder.mkdir()
        (folder / "config.py").write_text(CONFIG.format(config=config))
        workdir = folder / "run"
        argv = ["main", f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
        make_method, evaluations = experiment_config.make_method, []

        def make_with_init(name, *arguments):
            method = make_method(name, *arguments)
            if init is None or name != config["method"]["name"]:
                return method
            return method._replace(init=lambda key, frozen: init)

        def evaluate(*arguments, **options):
            found = evaluate_contenders(*arguments, **options)
            evaluations.extend(found)
            return found

        evaluate_contenders = runner.evaluate
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "evaluate", evaluate)
            patch.setattr(main, "log_plainly", lambda: None)  # remains in effect after the run
            for module in (experiment_config, experiment_start):
                patch.setattr(module, "make_method", make_with_init)
            code = run_app(main.main, "zsad_jax.main", argv)
        assert not code
        return Run(workdir, evaluations)

    return run


@pytest.fixture(scope="session")
def write_meta_json(save_image):
    """Returns a function that writes images and masks as PNG files with a meta.json in the given order."""

    def write(root, samples):
        """Writes samples (category, image [H, W, 3], label, mask [H, W] or None)."""
        entries = []
        for number, (category, image, label, mask) in enumerate(samples):
            entry = {"cls_name": category, "anomaly": int(label), "mask_path": ""}
            entry["img_path"] = f"{category}/{number:03}.png"
            save_image(root / entry["img_path"], image)
            if mask is not None:
                entry["mask_path"] = f"{category}/{number:03}_mask.png"
                save_image(root / entry["mask_path"], np.asarray(mask, np.uint8) * 255)
            entries.append(entry)
        # One list, because one list per category would change the order of the images.
        (root / "meta.json").write_text(json.dumps({"test": {"all": entries}}))

    return write


@pytest.fixture(scope="session")
def save_image():
    """Returns a function that writes pixels to a file and creates its folder."""

    def save(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    return save


@pytest.fixture(scope="session")
def assert_near():
    """Returns a function that compares arrays, with a tolerance relative to the largest expected entry."""

    def check(found, expected, tolerance):
        found, expected = np.asarray(found), np.asarray(expected)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()

    return check
