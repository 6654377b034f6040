"""Tests of SigLIP: the outputs of big_vision's model, its file layouts, texts and records."""

import math
import pathlib

import jax
import numpy as np
import pytest

from zsad_jax.backbones import load_backbone, registry, siglip
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.utils.errors import UserError

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/siglip2"
SHARED = pathlib.Path(__file__).parents[3] / "shared/weights"
REAL = SHARED / "golden_outputs/siglip2_vitb16_256_reference.npz"
WEIGHTS = registry.places("siglip2-b16-256").weights  # of the user: tests have a private folder
SENTENCEPIECE = SHARED / "tokenizers/axlearn_bpe_32k_c4.model"  # with the ids of Gemma's 0 and 1


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def read(name):
    with np.load(GOLDENS / f"siglip2_{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def golden():
    return read("golden")


@pytest.fixture(scope="module")
def model():
    return load_backbone("siglip", weights=GOLDENS / "siglip2_native.npz")


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_image_features_match_golden(model, golden):
    @jax.jit
    def encode(params, images):
        whole = model.encode_image(params, images)
        return whole, model.encode_image(params, images, cls_norm=False).global_tokens

    features, bare = encode(model.params, golden["images"])
    assert_close(features.global_tokens[:, 0], golden["img_prenorm"])
    assert_close(features.patches.reshape(2, 16, 48), golden["img_patch_encoded"])
    # The MAP head was trained on normalized tokens alone.
    np.testing.assert_array_equal(bare, features.global_tokens)


def test_text_features_and_probabilities_match_golden(model, golden):
    ids = golden["text_ids"]
    paddings = (ids == 0).astype(np.int32)
    text = jax.jit(model.encode_text)(model.params, ids, paddings)
    assert_close(unit(text), golden["txt_embedding"])
    image = jax.jit(model.encode_image)(model.params, golden["images"]).global_tokens[:, 0]
    logits = unit(image) @ unit(text).T / model.temperature + model.logit_bias
    assert_close(logits, golden["logits"])
    assert_close(1 / (1 + np.exp(-logits)), golden["probs_sigmoid"])


def test_cut_texts_are_extended_by_padding(model, golden):
    ids = np.where(np.arange(64) < 9, golden["text_ids"], 0)
    paddings = np.broadcast_to((np.arange(64) >= 9).astype(np.int32), ids.shape)
    encode = jax.jit(model.encode_text)
    full = encode(model.params, ids, paddings)
    assert_close(encode(model.params, ids[:, :9], paddings[:, :9]), full, 1e-6)
    with pytest.raises(UserError, match="have 65 tokens, but the text tower reads 64"):
        model.encode_prompts(
            model.params, np.zeros((1, 65, 48), np.float32), np.zeros((1, 65), int)
        )


def test_text_without_projection(model, golden):
    ids = golden["text_ids"]
    paddings = (ids == 0).astype(np.int32)
    text = model.encode_text(model.params, ids, paddings, project=False)
    head = model.params["text"]["head"]
    projected = text @ head["kernel"] + head["bias"]
    assert_close(projected, model.encode_text(model.params, ids, paddings))


def test_siglip_1_is_padded_with_the_end_token(golden, tmp_path):
    arrays = read("native")
    table = np.resize(arrays["params/txt/Embed_0/embedding"], (siglip.OF_SIGLIP1[0], 48))
    np.savez(tmp_path / "siglip.npz", **{**arrays, "params/txt/Embed_0/embedding": table})
    tokenizer = SENTENCEPIECE if SENTENCEPIECE.exists() else None
    model = load_backbone("siglip", weights=tmp_path / "siglip.npz", tokenizer=tokenizer)
    ids = np.where(np.arange(64) < 9, golden["text_ids"], siglip.END)
    full = model.encode_text(model.params, ids, np.zeros_like(ids))
    assert_close(
        model.encode_text(model.params, ids[:, :9], np.zeros((len(ids), 9), int)), full, 1e-6
    )
    if tokenizer:
        ids, paddings = model.tokenize(["a photo"])
        assert set(ids[paddings == 1]) == {siglip.END}


def looped(arrays):
    apart = {}
    for name, array in arrays.items():
        tower, found, part = name.partition("encoderblock/")
        if found:
            apart |= {f"{tower}encoderblock_{i}/{part}": x for i, x in enumerate(array)}
        else:
            apart[name] = array
    return apart


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {name.removeprefix("params/"): x for name, x in arrays.items()},
        lambda arrays: {name.replace("params/", "opt/target/"): x for name, x in arrays.items()},
        looped,
        lambda arrays: (
            arrays
            | {
                "params/txt/pos_embedding": arrays["params/txt/pos_embedding"] / 2,
                "params/txt/Encoder_0/pos_embedding": arrays["params/txt/pos_embedding"] / 2,
            }
        ),
    ],
    ids=["bare", "optimizer", "looped", "two_tables"],
)
def test_layouts_of_big_vision_give_bit_equal_trees(model, tmp_path, change):
    np.savez(tmp_path / "siglip.npz", **change(read("native")))
    other = load_backbone("siglip", weights=tmp_path / "siglip.npz")
    jax.tree.map(np.testing.assert_array_equal, other.params, model.params)
    assert (other.temperature, other.logit_bias) == (model.temperature, model.logit_bias)


@pytest.mark.parametrize(
    "name",
    ["img/embedding/kernel", "img/MAPHead_0/probe", "img/pos_embedding", "txt/head/kernel", "b"],
)
def test_names_missing_array_as_in_the_file(tmp_path, name):
    arrays = read("native")
    del arrays[f"params/{name}"]
    np.savez(tmp_path / "siglip.npz", **arrays)
    with pytest.raises(UserError, match=rf"siglip\.npz .*\b{name}\b"):
        load_backbone("siglip", weights=tmp_path / "siglip.npz")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("img/pos_embedding", np.float32(3)),
        ("img/pos_embedding", np.zeros((1, 15, 48), np.float32)),
        ("img/Transformer/encoderblock/LayerNorm_0/bias", np.float32(3)),
        ("txt/Encoder_0/pos_embedding", np.zeros((2, 48), np.float32)),
        ("t", np.zeros(2, np.float32)),
    ],
)
def test_rejects_misshapen_array(tmp_path, name, array):
    np.savez(tmp_path / "siglip.npz", **{**read("native"), f"params/{name}": array})
    with pytest.raises(UserError, match=rf"siglip\.npz .*{name.split('/')[0]}"):
        load_backbone("siglip", weights=tmp_path / "siglip.npz")


def test_positions_are_resized_with_aligned_corners(model, golden):
    sizes = siglip.VisionSizes(
        width=3, depth=1, num_heads=1, mlp_dim=1, patch_size=1, grid=4, num_global_tokens=1
    )
    grid = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    found = np.asarray(sizes.resize_positions(grid, (7, 4)))
    np.testing.assert_allclose(found[:, ::2], grid, atol=1e-6)
    np.testing.assert_allclose(found[:, 1::2], (grid[:, 1:] + grid[:, :-1]) / 2, atol=1e-6)
    images = np.zeros((1, 48, 80, 3), np.float32)
    features = jax.eval_shape(model.encode_image, model.params, images)
    assert features.patches.shape == (1, 1, 3, 5, 48)


@pytest.mark.skipif(not SENTENCEPIECE.exists(), reason="the tokenizer is not available")
def test_texts_are_lower_case_and_end_with_one_token():
    model = load_backbone("siglip", weights=GOLDENS / "siglip2_native.npz", tokenizer=SENTENCEPIECE)
    tokenize = siglip.tokenize_sentencepiece
    options = {"path": SENTENCEPIECE, "length": 64, "vocabulary": 32_000}
    words, _ = tokenize(["a photo"], **options)
    ids, paddings = tokenize(["A Photo"], **options, end=(siglip.END,))
    count = int((words != 0).sum())
    np.testing.assert_array_equal(ids[0, : count + 1], [*words[0, :count], siglip.END])
    assert (paddings[0] == 0).sum() == count + 1
    with pytest.raises(UserError, match="has 32000 tokens, but the text tower has 96"):
        model.tokenize(["a photo"])
    with pytest.raises(UserError, match="has 65 tokens, but the text tower reads 64"):
        tokenize([" ".join(["a"] * 64)], **options, end=(siglip.END,))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# Counted on `transformers.SiglipModel` with the sizes of the release.
@pytest.mark.parametrize(
    ("name", "parameters", "side", "width"),
    [
        ("siglip2-b16-512", 375_823_874, 32, 768),
        ("siglip2-l16-256", 881_526_786, 16, 1024),
        ("siglip2-so400m14-384", 1_136_008_498, 27, 1152),
        ("siglip2-g-opt16-256", 1_871_393_906, 16, 1536),
    ],
)
def test_records_have_the_sizes_of_the_release(name, parameters, side, width):
    backbone = describe_backbone(name)
    assert count(backbone.params) == parameters
    images = jax.ShapeDtypeStruct((2, *[backbone.preprocess.image_size] * 2, 3), np.float32)
    features = jax.eval_shape(backbone.encode_image, backbone.params, images)
    assert features.patches.shape == (2, 1, side, side, width)
    ids = jax.ShapeDtypeStruct((3, 64), np.int32)
    text = jax.eval_shape(backbone.encode_text, backbone.params, ids, ids)
    assert text.shape == (3, width)


def test_matches_real_output():
    """Compares with Hugging Face's patch tokens of the released B/16 at 256 pixels, where both are stored."""
    if not REAL.exists() or not WEIGHTS.exists():
        pytest.skip("The weights of siglip2-b16-256 are not stored.")
    with np.load(REAL) as data:
        image, expected = data["img"].transpose(1, 2, 0), data["patch_tokens"]
    model = load_backbone("siglip2-b16-256", weights=WEIGHTS)
    found = model.encode_image(model.params, image[None]).patches.reshape(256, 768)
    assert np.abs(found - expected).mean() < 1e-4
