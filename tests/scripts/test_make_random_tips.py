import math
import pathlib
import runpy

import numpy as np
import pytest

from zsad_jax.backbones import load_backbone, released

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "make_random_tips.py"))


def count_values(shapes):
    return sum(math.prod(shape) for name, shape in shapes.items() if "temperature" not in name)


# Counted on the published files' architecture, independently of the modules here.
@pytest.mark.parametrize(
    ("name", "lineage", "side", "arrays", "values"),
    [
        ("tips-s14-hr", "native", "vision", 198, 21_619_584),
        ("tips-s14-hr", "native", "text", 196, 33_582_336),
        ("tips-b14-hr", "native", "vision", 198, 85_706_496),
        ("tips-b14-hr", "native", "text", 196, 109_632_000),
        ("tips-l14-hr", "native", "vision", 390, 303_178_752),
        ("tips-l14-hr", "native", "text", 196, 183_924_736),
        ("tips-l14-hr", "pytorch", "vision", 344, 304_016_384),
        ("tips-so400m14-hr", "native", "vision", 438, 412_444_656),
        ("tips-g14-lr", "native", "vision", 726, 1_134_646_784),
        ("tips-g14-lr", "native", "text", 196, 389_133_312),
        ("tipsv2-b14", "native", "vision", 198, 86_296_320),
        ("tipsv2-l14", "native", "vision", 390, 303_965_184),
        ("tipsv2-so400m14", "native", "vision", 438, 413_329_392),
        ("tipsv2-so400m14", "native", "text", 436, 448_300_000),
        ("tipsv2-g14", "native", "vision", 726, 1_135_826_432),
        ("tipsv2-g14", "pytorch", "vision", 568, 1_135_952_384),
    ],
)
def test_arrays_are_as_many_as_in_the_published_files(script, name, lineage, side, arrays, values):
    shapes = script["shapes_of"](name, lineage, side)
    assert len(shapes) == arrays == released.RELEASES[name].count_arrays(lineage, side)
    # The published size of the largest text tower is rounded.
    tolerance = 1e-3 if side == "text" and arrays == 436 else 0
    assert count_values(shapes) == pytest.approx(values, rel=tolerance, abs=0)


@pytest.mark.parametrize(
    ("name", "lineage"), [("tips-s14-hr", "native"), ("tipsv2-b14", "pytorch")]
)
def test_a_written_checkpoint_loads_by_its_name(script, tmp_path, monkeypatch, name, lineage):
    """At a width of 32; the names and the numbers of blocks are the true ones."""
    monkeypatch.setenv("ZSAD_JAX_HOME", "")
    tokenizer = tmp_path / "any.model"
    tokenizer.write_bytes(b"pieces")
    sizes = script["WIDTH_AND_MLP"]
    monkeypatch.setitem(sizes, name.split("-")[1], (32, 64))
    monkeypatch.setitem(script["tips_checkpoints"].NUM_HEADS, 32, 2)
    monkeypatch.setitem(script["shapes_of"].__globals__, "VOCABULARY", 50)
    arguments = [name, "--lineage", lineage, "--out", str(tmp_path), "--tokenizer", str(tokenizer)]
    assert script["main"](arguments) == 0

    model = load_backbone(name, lineage=lineage)
    assert model.vision_depth == released.RELEASES[name].vision_depth
    image = np.random.default_rng(0).random((1, 28, 28, 3), np.float32)
    features = model.encode_image(model.params, image)
    assert 0.1 < np.std(features.patches) < 10
    text = model.encode_text(model.params, np.array([[3, 1, 4]]), np.zeros((1, 3), np.int32))
    assert 0.1 < np.std(text) < 10
    assert released.missing_files(name, lineage) == []


def test_the_seed_decides_the_values_and_what_is_there_stays(script, tmp_path):
    shapes = {"encoder_norm/scale": (3,), "mlp/kernel": (2, 3), "temperature_contrastive": ()}
    paths = [tmp_path / f"{i}.npz" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        script["write_arrays"](path, shapes, np.random.default_rng(seed))
    first, again, other = (dict(np.load(path)) for path in paths)
    assert {name: array.shape for name, array in first.items()} == shapes
    np.testing.assert_array_equal(first["mlp/kernel"], again["mlp/kernel"])
    assert np.abs(first["mlp/kernel"] - other["mlp/kernel"]).min() > 0
    assert np.abs(first["encoder_norm/scale"] - 1).max() < 0.2


def test_the_trained_tokenizer_knows_the_prompts(script, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    script["write_tokenizer"](tmp_path / "tokenizer.model", None, 0)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ids = processor.encode("a bad photo of a damaged hazelnut.")
    assert 5 < len(ids) < 20
    assert processor.unk_id() not in ids
