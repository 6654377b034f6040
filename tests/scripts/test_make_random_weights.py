import math
import pathlib
import runpy

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from zsad_jax.backbones import clip, load_backbone, registry, tips
from zsad_jax.backbones.tokenizers import tokenize_sentencepiece

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "make_random_weights.py"))


def count_values(shapes):
    return sum(math.prod(shape) for name, shape in shapes.items() if "temperature" not in name)


# Counts derived from the architecture of the published files, independently of the modules under test.
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
def test_array_counts_match_published_files(script, name, lineage, side, arrays, values):
    shapes = script["shapes_of"](name, lineage, side)
    assert len(shapes) == arrays
    # The published size of the largest text tower is rounded.
    tolerance = 1e-3 if side == "text" and arrays == 436 else 0
    assert count_values(shapes) == pytest.approx(values, rel=tolerance, abs=0)


@pytest.mark.parametrize(
    ("name", "arrays", "values", "width"),
    [("clip-vit-l14-336", 446, 427_944_193, 1024), ("clip-vit-b32", 302, 151_277_313, 768)],
)
def test_clip_uses_openai_names_and_shapes(script, name, arrays, values, width):
    shapes = script["shapes_of"](name, "native", "weights")
    assert len(shapes) == arrays
    assert count_values(shapes) == values
    assert shapes["token_embedding.weight"][0] == 49_408
    assert shapes["visual.transformer.resblocks.11.attn.in_proj_weight"] == (3 * width, width)
    assert shapes["logit_scale"] == ()


@pytest.mark.parametrize(
    ("name", "lineage"), [("tips-s14-hr", "native"), ("tipsv2-b14", "pytorch")]
)
def test_written_tips_loads_by_name(script, tmp_path, monkeypatch, name, lineage):
    """Uses width 32, with the original names and numbers of blocks."""
    monkeypatch.setenv("ZSAD_JAX_HOME", "")
    tokenizer = tmp_path / "any.model"
    tokenizer.write_bytes(b"pieces")
    small = registry.vit_sizes(registry.TowerSize(32, 1, 64, 12), grid=16, vocabulary=50)
    vision, text = small
    release = registry.RELEASES[name]._replace(vision=vision, text=text)
    monkeypatch.setitem(registry.RELEASES, name, release)
    arguments = [name, "--lineage", lineage, "--out", str(tmp_path), "--tokenizer", str(tokenizer)]
    assert script["main"](arguments) == 0

    model = load_backbone(name, lineage=lineage)
    assert model.vision_depth == 12
    assert_activations_of_order_one(model, tips.VisionEncoder(tips.VisionSizes(**vision)))
    assert registry.missing_files(name, lineage) == []


def assert_activations_of_order_one(model, vision):
    image = np.random.default_rng(0).random((1, 28, 28, 3), np.float32)
    _, state = vision.apply(
        {"params": model.params["vision"]},
        image,
        capture_intermediates=True,
        mutable="intermediates",
    )
    calls = flatten_dict(state["intermediates"], sep="/")
    [(last, _)] = next(value for name, value in calls.items() if "transformer/__call__" in name)
    assert 0.1 < np.std(last) < 10
    text = model.encode_text(model.params, np.array([[3, 1, 4]]), np.zeros((1, 3), np.int32))
    assert 0.01 < np.std(text) < 10


def test_written_clip_loads_by_name(script, tmp_path, monkeypatch, capsys):
    """Uses width 64 and a few blocks."""
    monkeypatch.setenv("ZSAD_JAX_HOME", "")
    name = "clip-vit-l14-336"
    small = registry.clip_sizes(
        patch_size=14, grid=4, width=64, depth=4, text_width=64, embed_dim=64, text_depth=2,
        vocabulary=50,
    )  # fmt: skip
    vision, text = small
    release = registry.RELEASES[name]._replace(vision=vision, text=text)
    monkeypatch.setitem(registry.RELEASES, name, release)
    assert script["main"]([name, "--out", str(tmp_path)]) == 0
    weights = tmp_path / "weights/clip/clip-vit-l14-336.safetensors"
    assert capsys.readouterr().out == f"weights={weights}\n"
    assert [path.name for path in registry.missing_files(name)] == ["bpe_simple_vocab_16e6.txt.gz"]

    model = load_backbone("clip", weights=weights)
    assert model.vision_depth == 4
    assert model.temperature == pytest.approx(0.01, rel=1e-2)  # half precision
    assert_activations_of_order_one(model, clip.VisionEncoder(clip.VisionSizes(**vision)))

    merges = tmp_path / "merges.gz"
    merges.write_bytes(b"merges")
    assert script["main"]([name, "--out", str(tmp_path), "--tokenizer", str(merges)]) == 0
    assert registry.missing_files(name) == []


def test_values_depend_on_seed(script, tmp_path):
    shapes = {"encoder_norm/scale": (3,), "mlp/kernel": (2, 3), "temperature_contrastive": ()}
    paths = [tmp_path / f"{i}.npz" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        script["write_arrays"](path, shapes, np.random.default_rng(seed))
    first, again, other = (dict(np.load(path)) for path in paths)
    assert {name: array.shape for name, array in first.items()} == shapes
    np.testing.assert_array_equal(first["mlp/kernel"], again["mlp/kernel"])
    assert np.abs(first["mlp/kernel"] - other["mlp/kernel"]).min() > 0
    assert np.abs(first["encoder_norm/scale"] - 1).max() < 0.2


def test_trained_tokenizer_knows_prompts_and_fits_the_tower(script, tmp_path):
    path, size = tmp_path / "tokenizer.model", registry.RELEASES["tips-s14-hr"].text["vocabulary"]
    script["write_tokenizer"](path, None, 0, size)
    text = "a bad photo of a damaged hazelnut."
    (ids,), (paddings,) = tokenize_sentencepiece([text], path=path, length=64, vocabulary=size)
    assert 5 < (paddings == 0).sum() < 20
    assert ids.max() < 2048  # the others are not used
