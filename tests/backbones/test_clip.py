"""Tests of the CLIP towers on tiny random weights, and of the options of the shared tower.

Outputs are compared with goldens. What these do not cover (value-value stream from any block, deep prompts,
raw tokens) is compared with a float64 implementation of the definitions in numpy.
"""

import collections
import io
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zsad_jax.backbones import clip, load_backbone, registry
from zsad_jax.backbones.base import Adapters
from zsad_jax.backbones.transformer import TowerSizes, Transformer
from zsad_jax.data.preprocess import Preprocess, decode_mask, resize_image, resize_mask
from zsad_jax.methods.shared.anomaly_map import bilinear_matrix
from zsad_jax.utils.errors import UserError

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
WEIGHTS = GOLDENS / "clip" / "weights.npz"
SIZES = (56, 70, 42)  # the native grid, a larger and a smaller one


@pytest.fixture(autouse=True, scope="module")
def exact():
    """Runs matrix products in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        yield


def load_golden(name):
    with np.load(GOLDENS / "clip" / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(scope="module")
def golden():
    return load_golden("expected")


def load(**options):
    return load_backbone("clip", **{"weights": WEIGHTS, "num_heads": 4, **options})


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def tips():
    folder = GOLDENS / "tips"
    return load_backbone(
        "tips", vision=folder / "vision_mlp_native.npz", text=folder / "text_native.npz"
    )


@pytest.fixture(scope="module")
def texts(golden):
    """Returns ids and paddings; the end token has the largest id."""
    ids = golden["text/token_ids"]
    return ids, (np.arange(77) > ids.argmax(axis=1)[:, None]).astype(np.int32)


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def encode_image(model, images, **options):
    """Encodes images in one compiled call, which is faster than operation by operation."""
    run = jax.jit(lambda params, images: model.encode_image(params, images, **options))
    return run(model.params, images)


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# --- definitions in numpy --------------------------------------------------------------------------------


def norm(params, x, epsilon):
    x = x - x.mean(axis=-1, keepdims=True)
    return (
        x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * params["scale"]
        + params["bias"]
    )


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(params, query, key, value, *, causal=False):
    """Computes softmax(q k^T / sqrt(head width)) v per head, then the output projection."""
    logits = np.einsum("bnhk,bmhk->bhnm", query, key) / np.sqrt(query.shape[-1])
    if causal:
        logits = np.where(np.tri(logits.shape[-1], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhnm,bmhk->bnhk", weights, value)
    return np.einsum("bnhk,hkw->bnw", mixed, params["out"]["kernel"]) + params["out"]["bias"]


def run_block(block, x, *, activation, epsilon, causal=False, through=False):
    """Returns a block's output, and its value-value attention on the same input, which may be in its path."""
    attention = block["MultiHeadDotProductAttention_0"]
    y = norm(block["LayerNorm_0"], x, epsilon)
    query, key, value = (
        np.einsum("bnw,whk->bnhk", y, attention[name]["kernel"]) + attention[name]["bias"]
        for name in ("query", "key", "value")
    )
    by_value = attend(attention, value, value, value, causal=causal)
    x = x + (by_value if through else attend(attention, query, key, value, causal=causal))
    y = norm(block["LayerNorm_1"], x, epsilon)
    first, second = (block["MlpBlock_0"][f"Dense_{i}"] for i in (0, 1))
    hidden = activation(y @ first["kernel"] + first["bias"])
    return x + hidden @ second["kernel"] + second["bias"], by_value


def blocks_of(tower):
    return [tower["transformer"][f"encoderblock_{i}"] for i in range(len(tower["transformer"]))]


def run_vision(blocks, x, vv_from, **options):
    """Returns the outputs of the ordinary stream and of the patch stream, block by block.

    From block `vv_from` on, the latter is y_i = y_(i-1) + value-value attention of LN(x_(i-1)).
    """
    ordinary, patches, stream = [], [], None
    for number, block in enumerate(blocks, start=1):
        if number == vv_from:
            stream = x
        x, by_value = run_block(block, x, **options)
        stream = None if stream is None else stream + by_value
        ordinary.append(x)
        patches.append(x if stream is None else stream)
    return ordinary, patches


def embed_patches(kernel, images):
    p = kernel.shape[0]
    b, height, width, _ = images.shape
    cut = images.reshape(b, height // p, p, width // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.einsum("bhwpqc,pqcd->bhwd", cut, kernel).reshape(b, -1, kernel.shape[-1])


def clip_tokens(vision, images):
    x = embed_patches(vision["embedding"]["kernel"], images)
    first = np.broadcast_to(vision["class_embedding"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([first, x], axis=1) + vision["positional_embedding"]
    return norm(vision["ln_pre"], x, 1e-5)


def tips_tokens(encoder, images):
    sequence = encoder["ToTokenSequence_0"]
    embedding = sequence["embedding"]
    x = embed_patches(embedding["kernel"], images) + embedding["bias"]
    x = x + sequence["posembed_input"].reshape(1, *x.shape[1:])
    first = np.broadcast_to(sequence["cls"], (len(x), *sequence["cls"].shape[1:]))
    return np.concatenate([first, x], axis=1)


# --- vision tower ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_image_features_match_golden(model, golden, size):
    images = model.preprocess.normalize(golden[f"size{size}/images_u8"])
    features = encode_image(model, images)
    side = size // 14
    assert features.patches.shape == (2, 1, side, side, 32)
    assert_close(features.global_tokens[:, 0], golden[f"size{size}/image_features"])
    patches = features.patches.reshape(2, side**2, 32)
    assert_close(patches, golden[f"size{size}/tokens_projected"][:, 1:])


@pytest.mark.parametrize("side", [3, 4, 5, 7, 9])
def test_position_tables_match_golden(model, golden, side):
    table = model.params["vision"]["positional_embedding"]
    used = {3: "size42/posemb_used", 4: "size56/posemb_used"}.get(side)
    expected = golden[used or f"posemb_interp/grid{side}"]
    first, grid = clip.resize_positions(table, (side, side))
    assert_close(first, expected[0], 1e-6)
    assert_close(grid.reshape(side**2, -1), expected[1:], 1e-6)
    if f"posemb_interp/grid{side}" in golden and used:
        np.testing.assert_array_equal(golden[f"posemb_interp/grid{side}"], expected)


def test_non_square_position_tables(model):
    table = np.asarray(model.params["vision"]["positional_embedding"])
    rows, columns = bilinear_matrix(4, 3), bilinear_matrix(4, 7)
    expected = np.einsum("hi,wj,ijd->hwd", rows, columns, table[1:].reshape(4, 4, -1))
    assert_close(clip.resize_positions(jnp.asarray(table), (3, 7))[1], expected, 1e-6)


def test_ignores_pixels_that_fill_no_patch(model, golden, caplog):
    images = model.preprocess.normalize(golden["size70/images_u8"])
    odd, cut = (
        encode_image(model, images[:, :height, :width]) for height, width in ((69, 55), (56, 42))
    )
    assert odd.patches.shape == (2, 1, 4, 3, 32)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(
        "Images of 55x69 pixels are padded or cut, since the patch size is 14."
    )
    jax.tree.map(np.testing.assert_array_equal, odd, cut)


@pytest.mark.parametrize(
    ("vv_from", "cls_norm", "patch_norm"),
    [(None, False, True), (1, True, True), (4, False, False), (8, False, True)],
)
def test_vision_options_of_clip(model, golden, vv_from, cls_norm, patch_norm):
    """Covers layers in any order, and class and patch tokens with and without the last norm."""
    images = model.preprocess.normalize(golden["size56/images_u8"])
    vision = as_float64(model.params["vision"])
    tokens = clip_tokens(vision, images.astype(np.float64))
    ordinary, patches = run_vision(
        blocks_of(vision), tokens, vv_from, activation=quick_gelu, epsilon=1e-5
    )
    layers = (8, 2, 4)
    last = ordinary[-1][:, :1]
    options = {"vv_from": vv_from, "cls_norm": cls_norm, "patch_norm": patch_norm}
    features = encode_image(model, images, layers=layers, **options)
    token = norm(vision["ln_post"], last, 1e-5) if cls_norm else last
    assert_close(features.global_tokens, token @ vision["projection"])
    for index, layer in enumerate(layers):
        expected = patches[layer - 1][:, 1:]
        if patch_norm:
            expected = norm(vision["ln_post"], expected, 1e-5) @ vision["projection"]
        assert_close(features.patches[:, index].reshape(2, 16, -1), expected)


@pytest.mark.parametrize(
    ("vv_from", "cls_norm", "patch_norm"),
    [(None, False, True), (1, True, False), (2, False, True), (None, True, False)],
)
def test_vision_options_of_tips(tips, vv_from, cls_norm, patch_norm):
    with np.load(GOLDENS / "tips" / "vision_mlp_golden.npz") as arrays:
        images = arrays["native/image"]
    encoder = as_float64(tips.params["vision"]["encoder"])
    tokens = tips_tokens(encoder, images.astype(np.float64))
    ordinary, patches = run_vision(
        blocks_of(encoder), tokens, vv_from, activation=gelu_tanh, epsilon=1e-6
    )
    layers = (3, 1)
    last = ordinary[-1][:, :2]
    options = {"vv_from": vv_from, "cls_norm": cls_norm, "patch_norm": patch_norm}
    features = encode_image(tips, images, layers=layers, **options)
    token = norm(encoder["encoder_norm"], last, 1e-6) if cls_norm else last
    assert_close(features.global_tokens, token)
    for index, layer in enumerate(layers):
        expected = patches[layer - 1][:, 2:]
        if patch_norm:
            expected = norm(encoder["encoder_norm"], expected, 1e-6)
        assert_close(features.patches[:, index].reshape(*expected.shape), expected)


def test_learned_options_of_tips(tips):
    """Covers prompts of fewer blocks than the tower has, adapters, and value-value attention in the path."""
    with np.load(GOLDENS / "tips" / "vision_mlp_golden.npz") as arrays:
        images = arrays["native/image"]
    encoder, rng = as_float64(tips.params["vision"]["encoder"]), np.random.default_rng(0)
    x = tips_tokens(encoder, images.astype(np.float64))
    b, n, width = x.shape
    prompts = rng.normal(size=(2, b, 3, width)).astype(np.float32)
    kernels = rng.normal(size=(2, width, width)).astype(np.float32)
    expected = []
    for i, block in enumerate(blocks_of(encoder)):
        x = np.concatenate([x[:, :n], prompts[i] if i < 2 else x[:, n:]], axis=1)
        x, _ = run_block(block, x, activation=gelu_tanh, epsilon=1e-6, through=i >= 1)
        if i < 2:
            y = x @ kernels[i]
            y = np.where(y > 0, y, 0.01 * y)
            y *= np.linalg.norm(x, axis=-1, keepdims=True) / np.linalg.norm(
                y, axis=-1, keepdims=True
            )
            x = 0.7 * x + 0.3 * y
        expected.append(x[:, 2:n])
    options = {"prompts": prompts, "adapters": Adapters(kernels, 0.3), "vv_path": "through"}
    features = encode_image(tips, images, layers=(3, 1), vv_from=2, patch_norm=False, **options)
    for index, layer in enumerate((3, 1)):
        found = features.patches[:, index].reshape(b, n - 2, width)
        assert_close(found, expected[layer - 1])


def test_long_sequences_match_value_value_stream(model):
    """Uses long sequences, for which the CPU computes attention one head at a time."""
    images = jax.random.normal(jax.random.key(0), (1, 14 * 17, 14 * 16, 3))
    options = {"layers": (2, 8), "vv_from": 7}
    by_head = encode_image(model, images, **options)
    plain = encode_image(load(attention="plain"), images, **options)
    assert_close(by_head.patches, plain.patches)
    assert_close(by_head.global_tokens, plain.global_tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (9,)}, r"layers=\(9,\) is not valid. The vision tower has the layers 1 to 8"),
        ({"layers": ()}, r"layers=\(\) is not valid"),
        ({"layers": 8}, "layers=8 is not valid"),
        ({"layers": ["last"]}, r"layers=\['last'\] is not valid"),
        ({"vv_from": 0}, "vv_from=0 is not valid. The vision tower has the blocks 1 to 8"),
        ({"vv_from": 9}, "vv_from=9"),
        ({"vv_path": "over"}, "vv_path='over' is not valid. Available: beside, through"),
        (
            {"prompts": np.zeros((9, 1, 2, 64), np.float32)},
            r"The prompts are float32 \[9, 1, 2, 64\]; ",
        ),
        (
            {"prompts": np.zeros((2, 3, 2, 64), np.float32)},
            r"expected floating-point \[2, 1, tokens, 64\]",
        ),
        ({"adapters": Adapters(np.zeros((9, 64, 64), np.float32))}, r"expected .* \[8, 64, 64\]"),
    ],
)
def test_rejects_options_that_do_not_fit(model, options, message):
    with pytest.raises(UserError, match=message):
        model.encode_image(model.params, np.zeros((1, 56, 56, 3), np.float32), **options)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 56, 56, 3), np.uint8), np.zeros((56, 56, 3)), np.zeros((1, 3, 56, 56)), []]
)  # fmt: skip
def test_rejects_images_that_are_not_normalized(model, images):
    words = r"expected floating-point \[images, height, width, 3\]\. Pass .*preprocess\.normalize"
    with pytest.raises(UserError, match=words):
        model.encode_image(model.params, images)
    if len(images):
        with pytest.raises(UserError, match=words):
            jax.jit(model.encode_image)(model.params, images)
    with pytest.raises(UserError, match=r"The images reach 255\. Pass .*preprocess\.normalize"):
        model.encode_image(model.params, np.full((1, 56, 56, 3), 255.0))


@pytest.mark.parametrize("shape", [(0, 56, 56, 3), (1, 0, 56, 3), (1, 56, 13, 3)])
def test_rejects_images_without_a_patch(model, shape):
    with pytest.raises(UserError, match="expected at least 14 pixels a side"):
        model.encode_image(model.params, np.zeros(shape, np.float32))


def test_rejects_params_of_something_else(model):
    images = np.zeros((1, 56, 56, 3), np.float32)
    for params in (images, model.params["vision"]):
        with pytest.raises(UserError, match=r"without 'vision'\. Pass backbone\.params"):
            model.encode_image(params, images)


def test_rejects_params_of_another_backbone(model, texts):
    other = load(text_num_heads=3).params | {"vision": model.params["text"]}
    with pytest.raises(UserError, match="'vision' parameters are not those of this backbone"):
        model.encode_image(other, np.zeros((1, 56, 56, 3), np.float32))
    with pytest.raises(UserError, match="'text' parameters are not those of this backbone"):
        model.encode_text(other, *texts)


def test_rejects_texts_that_are_not_tokenized(model, texts):
    ids, paddings = texts
    with pytest.raises(
        UserError, match=r"ids are list; expected integer \[texts, tokens\].*tokenize"
    ):
        model.encode_text(model.params, ["a photo"], ["a photo"])
    with pytest.raises(
        UserError, match=r"paddings are int.* \[1, 77\]; expected integer \[4, 77\]"
    ):
        model.encode_text(model.params, ids[:4], paddings[:1])
    with pytest.raises(UserError, match=r"embeddings are int.*; expected floating-point \[texts,"):
        model.encode_prompts(model.params, ids, paddings)
    deep = np.zeros((3, 2, 4, 48), np.float32)
    embeddings = model.embed_tokens(model.params, ids[:3])
    with pytest.raises(UserError, match=r"\[3, 2, 4, 48\]; .* \[blocks, 3, tokens, 48\]\. Pass"):
        model.encode_prompts(model.params, embeddings, paddings[:3], deep)


# --- text tower ------------------------------------------------------------------------------------------


def test_text_features_and_logits_match_golden(model, golden, texts):
    features = jax.jit(model.encode_text)(model.params, *texts)
    assert_close(features, golden["text/features"])
    images = golden["size56/image_features"]
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (images, features)]
    logits = unit[0] @ unit[1].T / model.temperature
    assert_close(logits, golden["logits_per_image_size56"], 1e-4)


def test_padding_is_ignored_and_can_be_truncated(model, texts):
    ids, paddings = texts
    encode = jax.jit(model.encode_text)
    features = encode(model.params, ids, paddings)
    other = np.where(paddings == 1, 320, ids)
    np.testing.assert_array_equal(encode(model.params, other, paddings), features)
    short = (paddings == 0).sum(axis=1) < 77
    assert short.sum() == 4
    longest = (paddings[short] == 0).sum(axis=1).max()
    cut = encode(model.params, ids[short, :longest], paddings[short, :longest])
    assert longest < 12
    assert_close(cut, features[short], 1e-6)


def run_text(text, embeddings, paddings, deep, activation=quick_gelu):
    """Runs the text tower; before each block but the first, deep prompts replace rows after the start token."""
    x = embeddings + text["positional_embedding"][: embeddings.shape[1]]
    for i, block in enumerate(blocks_of(text)):
        if 1 <= i <= len(deep):
            x = x.copy()
            x[:, 1 : 1 + deep.shape[2]] = deep[i - 1]
        x, _ = run_block(block, x, activation=activation, epsilon=1e-5, causal=True)
    last = (paddings == 0).sum(axis=1) - 1
    x = norm(text["ln_final"], x[np.arange(len(x)), last], 1e-5)
    return x @ text["projection"]


@pytest.mark.parametrize("kind", ["none", "shared", "per_prompt"])
def test_prompts(model, texts, kind):
    """Covers learned embeddings, with deep prompts shared by all texts or individual for each text."""
    rng = np.random.default_rng(0)
    ids, paddings = (x[:2, :12] for x in texts)
    embeddings = np.array(model.embed_tokens(model.params, ids))
    np.testing.assert_array_equal(embeddings, model.params["text"]["token_embedding"][ids])
    embeddings[:, 1:4] = rng.normal(size=(2, 3, 48))
    sets = {"none": 0, "shared": 1, "per_prompt": 2}[kind]
    deep = rng.normal(size=(3 if sets else 0, max(sets, 1), 2, 48)).astype(np.float32)
    expected = run_text(as_float64(model.params["text"]), embeddings, paddings, deep)
    given = {"deep_prompts": deep} if sets else {}
    found = jax.jit(model.encode_prompts)(model.params, embeddings, paddings, **given)
    assert_close(found, expected)


def test_deep_prompts_of_one_text_do_not_affect_others(model, texts):
    rng = np.random.default_rng(0)
    ids, paddings = (x[:2, :12] for x in texts)
    embeddings = model.embed_tokens(model.params, ids)
    encode = jax.jit(model.encode_prompts)
    deep = rng.normal(size=(4, 1, 3, 48)).astype(np.float32)
    shared = encode(model.params, embeddings, paddings, deep)
    each = np.repeat(deep, 2, axis=1)
    assert_close(encode(model.params, embeddings, paddings, each), shared, 1e-6)
    each[:, 1] *= -1
    moved = encode(model.params, embeddings, paddings, each)
    assert_close(moved[0], shared[0], 1e-6)
    assert np.abs(moved[1] - shared[1]).max() > 1e-3


def test_models_trained_with_exact_gelu(texts):
    model = load(activation="gelu")
    ids, paddings = (x[:1, :9] for x in texts)
    embeddings = np.asarray(model.embed_tokens(model.params, ids), np.float64)
    erf = np.vectorize(math.erf)
    expected = run_text(
        as_float64(model.params["text"]),
        embeddings,
        paddings,
        (),
        activation=lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    )
    assert_close(jax.jit(model.encode_text)(model.params, ids, paddings), expected)


# --- precision -------------------------------------------------------------------------------------------


def test_bfloat16_is_close_to_float32_with_float32_norms_and_softmax(model, golden, texts):
    half = load(dtype="bfloat16")
    images = model.preprocess.normalize(golden["size42/images_u8"])
    texts = [x[:2, :12] for x in texts]

    def encode(model):
        def run(params, images, ids, paddings):
            options = {"layers": (4, 8), "vv_from": 4, "cls_norm": False}
            features = model.encode_image(params, images, **options)
            return *features[:2], model.encode_text(params, ids, paddings)

        return jax.jit(run)

    exact, rounded = (encode(m)(m.params, images, *texts) for m in (model, half))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == jnp.float32
        cosine = jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
        assert cosine.min() > 0.99
        assert np.abs(a - b).max() > 1e-6
    # Softmax uses exponentials, norms use reciprocal square roots; only matrix products run in
    # bfloat16.
    program = jax.make_jaxpr(encode(half))(half.params, images, *texts)
    types = collections.defaultdict(list)
    for one in equations(program.jaxpr):
        types[one.primitive.name].append(one.outvars[0].aval.dtype.name)
    for name in ("exp", "rsqrt"):
        assert len(types[name]) >= 13  # blocks of both towers
        assert set(types[name]) == {"float32"}
    assert "bfloat16" in types["dot_general"]


def equations(program):
    """Yields all equations of a program, those of a function at each call."""
    for one in program.eqns:
        yield one
        for inner in jax.tree.leaves([*one.params.values()]):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


# --- preprocessing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rgb_down", "rgb_up", "gray", "rgba"])
def test_preprocessing_matches_golden(model, kind):
    data = load_golden("preprocess")
    expected = data[f"{kind}/resized_u8"]
    wanted = load(image_size=len(expected)).preprocess
    assert wanted == Preprocess(
        image_size=len(expected), resize="bicubic", mean=clip.MEAN, std=clip.STD, rgb_first=False
    )
    picture = Image.fromarray(data[f"{kind}/input_u8"])
    resized = resize_image(picture, wanted)
    np.testing.assert_array_equal(resized, expected)
    every_seventh = wanted.normalize(resized).transpose(2, 0, 1)[:, ::7, ::7]
    assert_close(every_seventh, data[f"{kind}/normalised"], 1e-6)
    if kind == "rgba":  # for these images, the order of resizing and converting matters
        other = Preprocess(image_size=len(expected), resize="bicubic", rgb_first=True)
        assert (resize_image(picture, other) != expected).any()


def test_masks():
    data = load_golden("preprocess")
    buffer = io.BytesIO()
    Image.fromarray(data["mask/input"]).save(buffer, "png")
    mask = decode_mask(buffer.getvalue())
    np.testing.assert_array_equal(mask, data["mask/input"] > 0)
    resized = resize_mask(mask, 56)
    np.testing.assert_array_equal(resized, data["mask/binary"] == 1)
    np.testing.assert_array_equal(resized, data["mask/resized_float"] > 0.5)


def test_rejects_deep_prompts_with_value_value_stream():
    tower = Transformer(TowerSizes(width=4, depth=2, num_heads=1, mlp_dim=4))
    with pytest.raises(ValueError, match="deep prompts has no value-value stream"):
        tower.init(
            jax.random.key(0), jnp.ones((1, 3, 4)), deep_prompts=jnp.ones((1, 1, 1, 4)), vv_from=1
        )


# --- loading ---------------------------------------------------------------------------------------------


def test_sizes_are_inferred_from_arrays(model):
    sizes = {
        "patch_size": 14, "embed_dim": 32, "num_global_tokens": 1, "num_start_tokens": 1,
        "vision_width": 64, "vision_depth": 8, "text_width": 48, "text_depth": 5, "text_length": 77,
    }  # fmt: skip
    assert {name: getattr(model, name) for name in sizes} == sizes
    assert model.preprocess.image_size == 56
    with np.load(WEIGHTS) as arrays:
        assert model.temperature == pytest.approx(np.exp(-arrays["logit_scale"]), rel=1e-6)
    assert not model.demonstration


@pytest.mark.parametrize("name", ["clip-nano", "tips-nano"])
def test_bytes_that_are_not_text_are_tokenized_as_question_marks(name):
    tokenize = load_backbone(name).tokenize
    (found, _), (expected, _) = tokenize(["caf\udce9"]), tokenize(["caf?"])
    np.testing.assert_array_equal(found, expected)


def test_words_of_learned_prompts_need_no_vocabulary(model):
    ids, paddings = model.tokenize(iter(["object.", "damaged object."]))
    assert ids.shape == paddings.shape == (2, 77)
    np.testing.assert_array_equal(ids[1, :6], [49406, 13568, 14115, 269, 49407, 0])
    np.testing.assert_array_equal((paddings == 0).sum(axis=1), [4, 5])
    tokens = json.loads((GOLDENS / "clip" / "tokenizer.json").read_text())
    assert tokens  # the other strings are in test_tokenizers.py
    with pytest.raises(UserError, match="tokenizer=PATH"):
        model.tokenize(["a screw"])


@pytest.fixture
def arrays():
    with np.load(WEIGHTS) as content:
        found = {name: content[name] for name in content.files}
    # A small vocabulary keeps the files small.
    return found | {"token_embedding.weight": found["token_embedding.weight"][:600]}


def save(path, arrays):
    np.savez(path, **arrays)
    return path


def test_towers_in_two_files_equal_those_in_one(arrays, tmp_path):
    vision = {name: x for name, x in arrays.items() if name.startswith("visual.")}
    text = {name: x for name, x in arrays.items() if name not in vision}
    one = load(weights=save(tmp_path / "both.npz", arrays))
    two = load_backbone(
        "clip",
        vision=save(tmp_path / "vision.npz", vision),
        text=save(tmp_path / "text.npz", text),
        num_heads=4,
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert one.digest != two.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": None}, "width of 48 is not a multiple of 64. Pass num_heads"),
        ({"num_heads": 5}, "64 wide, which is not a multiple of 5 attention heads"),
        ({"text_num_heads": 7}, "48 wide, which is not a multiple of 7 attention heads"),
        (
            {"activation": "relu"},
            "'relu' is not an activation of CLIP. Did you mean gelu",
        ),
        ({"dtype": "float16"}, "float16"),
        ({"vision_depth": 24}, "vision_depth=24 contradicts .* have 8"),
        ({"text_width": 768}, "text_width=768 contradicts .* have 48"),
        ({"color": "red"}, "'color' is not an option of clip"),
        ({"image_size": 0}, "image_size=0 is out of range. Pass 1 to"),
        ({"image_size": "56"}, "image_size='56' is not an integer"),
        ({"image_size": True}, "image_size=True is not an integer"),
        ({"image_size": 56.0}, "image_size=56.0 is not an integer"),
        ({"image_size": 13}, r"image_size=13 is not a multiple of 14, .* of clip. Use 14\."),
        ({"image_size": 57}, r"image_size=57 is not a multiple of 14, .* of clip. Use 56 or 70\."),
        ({"lineage": "native"}, "lineage='native' is not an option of clip. Omit it"),
        ({"lineage": "jax"}, "lineage='jax' is not a lineage"),
        ({"vision": WEIGHTS}, "weights=PATH cannot be combined with vision=PATH"),
        ({"weights": None}, "'clip' needs its files"),
    ],
)
def test_rejects_invalid_options(options, message):
    with pytest.raises(UserError, match=message):
        load(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip-nano", {"num_heads": 2}, "num_heads=2 contradicts clip-nano, which has 4"),
        ("clip-vit-l14", {"text_num_heads": 16}, "text_num_heads=16 .* which has 12"),
        ("tips-l14-hr", {"num_heads": 8}, "num_heads=8 contradicts tips-l14-hr, which has 16"),
    ],
)
def test_rejects_other_head_count_for_named_model(name, options, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, weights=WEIGHTS, **options)


def test_accepts_numbers_of_numpy():
    loaded = load(image_size=np.int64(28), bit_depth=np.int32(12), text_width=np.int64(48))
    assert type(loaded.preprocess.image_size) is type(loaded.preprocess.bit_depth) is int


def test_resizes_as_asked():
    assert [load(resize=one).preprocess.resize for one in (None, "bilinear")] == [
        "bicubic",
        "bilinear",
    ]
    with pytest.raises(UserError, match="resize='nearest'"):
        load(resize="nearest")


def test_accepts_head_count_of_named_model(monkeypatch):
    """Checks that the number of heads of the vision tower does not change that of the text tower."""
    release = registry.RELEASES["clip-vit-b32"]._replace(
        vision={"num_heads": 4, "patch_size": 14}, text={"num_heads": 2}
    )
    monkeypatch.setitem(registry.RELEASES, "clip-mine", release)
    text = load_backbone("clip-mine", weights=WEIGHTS, num_heads=4).params["text"]
    attention = text["transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    assert attention["query"]["kernel"].shape == (48, 2, 24)


def test_activation_of_named_model_is_the_default(monkeypatch):
    release = registry.RELEASES["clip-vit-b32"]._replace(
        vision={"num_heads": 4, "patch_size": 14, "activation": "gelu"}, text={"num_heads": 2}
    )
    monkeypatch.setitem(registry.RELEASES, "clip-mine", release)
    images = np.random.default_rng(0).normal(size=(1, 28, 28, 3)).astype(np.float32)
    recorded, gelu, quick = (
        model.encode_image(model.params, images).global_tokens
        for model in (
            load_backbone("clip-mine", weights=WEIGHTS),
            load(activation="gelu"),
            load_backbone("clip-mine", weights=WEIGHTS, activation="quick_gelu"),
        )
    )
    np.testing.assert_array_equal(recorded, gelu)
    assert np.abs(recorded - quick).max() > 1e-4


def test_accepts_sizes_confirmed_by_arrays():
    model = load(vision_depth=8, text_depth=5, text_width=48, image_size=70, text_num_heads=2)
    assert model.preprocess.image_size == 70
    attention = model.params["text"]["transformer"]["encoderblock_0"]
    assert attention["MultiHeadDotProductAttention_0"]["query"]["kernel"].shape == (48, 2, 24)


def test_rejects_towers_of_two_models(arrays, tmp_path):
    arrays["text_projection"] = np.zeros((48, 40), np.float32)
    path = save(tmp_path / "mixed.npz", arrays)
    with pytest.raises(UserError, match=r"mixed\.npz project images to 32 and texts to 40 numbers"):
        load(weights=path)


def test_errors_name_the_file(arrays, tmp_path):
    del arrays["ln_final.bias"], arrays["visual.transformer.resblocks.3.attn.in_proj_weight"]
    path = save(tmp_path / "broken.npz", arrays)
    with pytest.raises(UserError, match=r"broken\.npz.*2 missing: ") as error:
        load(weights=path)
    assert "visual.transformer.resblocks.3.attn.in_proj_weight (vision tower)" in str(error.value)
    assert "ln_final.bias (text tower)" in str(error.value)
    path = save(tmp_path / "other.npz", {"norm.weight": np.zeros(3)})
    with pytest.raises(UserError, match=r"other\.npz has no array 'visual\.class_embedding"):
        load(weights=path)
