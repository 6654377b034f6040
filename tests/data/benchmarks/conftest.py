"""Fixtures with miniatures: small copies of each benchmark's official layout, drawn by the tests.

`miniatures/<key>.py` has a function `make(root, tools)` that writes the layout below an empty folder and
returns a `Miniature`: every sample as constructed, and the issues planted on purpose.
"""

import dataclasses
import importlib.util
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data.benchmarks.builders import BUILDERS
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.benchmarks.prepared import PreparedDataset

FOLDER = pathlib.Path(__file__).parent / "miniatures"
REAL = pathlib.Path(__file__).parents[4] / "shared" / "realdata"


class Expected(NamedTuple):
    """A sample as constructed; `split` is None if the builder draws its split."""

    split: str | None
    file_name: str
    category: str
    label: int
    image: np.ndarray  # [H, W, 3]
    mask: np.ndarray | None = None  # [H, W], of anomalous images with a mask
    defect: str | None = None  # None: not checked
    has_mask: bool = True
    subject: str = ""
    slice: int = -1


class Miniature(NamedTuple):
    """The samples of a miniature; issues and notes are (end of the file name, kind)."""

    samples: list[Expected]
    issues: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


class Tools:
    """Functions of the miniatures for drawing and saving."""

    Expected = Expected
    Miniature = Miniature

    @staticmethod
    def draw(seed, *, mode="RGB", size=(12, 9)):
        """Draws an image of noise; `size` is (width, height)."""
        shape = (size[1], size[0]) + {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))

    @staticmethod
    def draw_mask(seed, *, values=(0, 255), size=(12, 9)):
        """Draws a mask with these gray values, neither empty nor full."""
        pixels = np.random.default_rng(seed).choice(values, (size[1], size[0])).astype(np.uint8)
        pixels[0, 0], pixels[-1, -1] = max(values), 0
        return Image.fromarray(pixels)

    @staticmethod
    def save(image, path, **options):
        """Writes an image; returns its pixels as a viewer shows them, [H, W, 3]."""
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        with Image.open(path) as written:
            return np.asarray(written.convert("RGB"))

    @staticmethod
    def save_mask(image, path, **options):
        """Writes a mask; returns its non-zero pixels, [H, W]."""
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        with Image.open(path) as written:
            return np.asarray(written.convert("L")) > 0


@pytest.fixture
def tools():
    return Tools


@pytest.fixture
def make_miniature():
    """Returns a function of name and folder that writes a miniature there."""

    def make(name, root):
        spec = importlib.util.spec_from_file_location(f"miniature_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        root.mkdir(parents=True, exist_ok=True)
        return module.make(root, Tools)

    return make


@pytest.fixture
def change_facts(monkeypatch):
    """Returns a function that changes the facts of a benchmark for this test.

    `archives` may be a function of the archives.
    """

    def change(name, *, archives=lambda known: known, **fields):
        facts = DATASETS[name]
        changed = dataclasses.replace(facts, archives=tuple(archives(facts.archives)), **fields)
        monkeypatch.setitem(DATASETS, name, changed)

    return change


@pytest.fixture
def prepare(tmp_path):
    """Returns a function of name and source that prepares and opens a split (default: test)."""

    def run(name, source, *, data_dir=tmp_path / "data", split="test", **options):
        BUILDERS[name](data_dir=data_dir).download_and_prepare(source=source, **options)
        return PreparedDataset(name, data_dir, split)

    return run


@pytest.fixture
def pack():
    """Returns a function that packs a folder's contents into a tar file."""

    def run(folder, path):
        with tarfile.open(path, "w") as archive:
            for one in sorted(folder.iterdir()):
                archive.add(one, one.name)
        return path

    return run


@pytest.fixture
def real_data():
    """Returns a function that finds small real data by name, or skips the test if it is not available."""

    def find(name):
        if not (REAL / name).is_dir():
            pytest.skip(f"the real data of {name} is not available")
        return REAL / name

    return find
