"""Tests of DINOv2: real outputs where the weights are at hand, position rules, file formats and records."""

import functools
import math
import pathlib

import jax
import numpy as np
import pytest

from zsad_jax.backbones import dinov2, load_backbone, registry
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.utils.errors import UserError

SHARED = pathlib.Path(__file__).parents[3] / "shared/weights"
REAL = SHARED / "golden_outputs/dinov2_vits14_reg_reference.npz"
WEIGHTS = registry.places("dinov2-s14-reg").weights  # of the user: tests have a private folder
WIDTH, DEPTH, GRID = 32, 2, 4


def original(*, registers=0, gated=False):
    """Returns random arrays of a tower in the names of the original; every scale, bias and token matters."""
    rng = np.random.default_rng(registers + gated)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    hidden = 24
    arrays = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, 1 + GRID**2, WIDTH),
        "mask_token": draw(1, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, 14, 14) / 20,
        "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": draw(WIDTH),
        "norm.bias": draw(WIDTH),
    }
    if registers:
        arrays["register_tokens"] = draw(1, registers, WIDTH)
    dense = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    if gated:
        dense |= {"mlp.w12": (2 * hidden, WIDTH), "mlp.w3": (WIDTH, hidden)}
    else:
        dense |= {"mlp.fc1": (hidden, WIDTH), "mlp.fc2": (WIDTH, hidden)}
    for i in range(DEPTH):
        for norm in ("norm1", "norm2"):
            arrays |= {f"blocks.{i}.{norm}.{kind}": draw(WIDTH) for kind in ("weight", "bias")}
        for scale in ("ls1", "ls2"):
            arrays[f"blocks.{i}.{scale}.gamma"] = draw(WIDTH)
        for part, (out, width) in dense.items():
            arrays[f"blocks.{i}.{part}.weight"] = draw(out, width) / width**0.5
            arrays[f"blocks.{i}.{part}.bias"] = draw(out)
    return arrays


def timm(arrays):
    arrays = {name: array for name, array in arrays.items() if name != "mask_token"}
    if "register_tokens" in arrays:
        arrays["reg_token"] = arrays.pop("register_tokens")
        arrays["cls_token"] = arrays["cls_token"] + arrays["pos_embed"][:, :1]
        arrays["pos_embed"] = arrays["pos_embed"][:, 1:]
    names = {".w12.": ".fc1.", ".w3.": ".fc2."}
    for old, new in names.items():
        arrays = {name.replace(old, new): array for name, array in arrays.items()}
    return arrays


HUGGING_FACE = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "blocks.": "encoder.layer.",
    ".attn.proj.": ".attention.output.dense.",
    ".ls1.gamma": ".layer_scale1.lambda1",
    ".ls2.gamma": ".layer_scale2.lambda1",
    ".w12.": ".weights_in.",
    ".w3.": ".weights_out.",
}


def hugging_face(arrays):
    renamed = {}
    for name, array in arrays.items():
        for old, new in HUGGING_FACE.items():
            name = name.replace(old, new)
        if name.startswith("norm."):
            name = f"layer{name}"
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = rows
        else:
            renamed[name] = array
    return renamed


def in_memory(arrays):
    """Returns the names that transformers 5 holds in memory, where the branches of a SwiGLU are apart."""
    names = {".attention.output.dense.": ".attention.o_proj.", ".weights_out.": ".down_proj."}
    names |= {
        f".attention.attention.{one}.": f".attention.{one[0]}_proj."
        for one in ("query", "key", "value")
    }
    renamed = {}
    for name, array in hugging_face(arrays).items():
        for old, new in names.items():
            name = name.replace(old, new)
        if ".weights_in." in name:
            for part, rows in zip(("gate_proj", "up_proj"), np.split(array, 2), strict=True):
                renamed[name.replace("weights_in", part)] = rows
        else:
            renamed[name] = array
    return renamed


def write(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.fixture
def load(tmp_path):
    """Returns a function from arrays to the backbone that is loaded from a file of them."""

    def load_arrays(arrays, **options):
        path = write(tmp_path / "dinov2.npz", arrays)
        return load_backbone("dinov2", weights=path, num_heads=4, **options)

    return load_arrays


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_all_formats_give_bit_equal_trees(load, registers, gated):
    arrays = original(registers=registers, gated=gated)
    ours = load(arrays)
    prefixed = {f"dinov2.{name}": array for name, array in hugging_face(arrays).items()}
    prefixed["classifier.weight"] = np.zeros((2, WIDTH), np.float32)
    training = {f"teacher.backbone.{name}": array for name, array in arrays.items()}
    training["teacher.dino_head.weight"] = np.zeros((2, WIDTH), np.float32)
    for other in (timm(arrays), hugging_face(arrays), in_memory(arrays), prefixed, training):
        jax.tree.map(np.testing.assert_array_equal, load(other).params, ours.params)


@pytest.mark.parametrize("registers", [0, 4])
def test_registers_are_not_returned(load, registers):
    model = load(original(registers=registers))
    images = np.random.default_rng(0).normal(size=(2, 56, 42, 3)).astype(np.float32)
    encode = functools.partial(model.encode_image, layers=(1, 2))
    features = jax.eval_shape(encode, model.params, images)
    assert features.global_tokens.shape == (2, 1, WIDTH)
    assert features.patches.shape == (2, 2, 4, 3, WIDTH)
    assert (model.num_global_tokens, model.embed_dim, model.vision_depth) == (1, WIDTH, DEPTH)
    assert model.preprocess.image_size == 56


def cubic(values, target, offset):
    """Interpolates numbers along an axis, one output and one tap at a time."""
    side, result = len(values), []
    for i in range(target):
        x = (i + 0.5) * side / (target + offset) - 0.5
        total = 0.0
        for tap in range(math.floor(x) - 1, math.floor(x) + 3):
            d = abs(x - tap)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
            weight = near if d <= 1 else far
            total = total + weight * values[min(max(tap, 0), side - 1)]
        result.append(total)
    return np.array(result)


@pytest.mark.parametrize("size", [(4, 4), (7, 3), (2, 9)])
@pytest.mark.parametrize(("rule", "offset"), [("offset", 0.1), ("size", 0.0)])
def test_bicubic_positions_match_loops(size, rule, offset):
    grid = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    expected = grid[0]
    if size != (4, 4):  # the native grid is kept as it is
        expected = cubic(expected, size[0], offset)
        expected = cubic(expected.swapaxes(0, 1), size[1], offset).swapaxes(0, 1)
    found = dinov2.resize_position_grid(grid, size, rule)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize(("registers", "default"), [(0, "offset"), (4, "antialias")])
def test_default_position_rule_is_that_of_the_release(load, registers, default):
    images = np.random.default_rng(0).normal(size=(1, 42, 42, 3)).astype(np.float32)

    def encode(**options):
        model = load(original(registers=registers), **options)
        return np.asarray(jax.jit(model.encode_image)(model.params, images).patches)

    results = {rule: encode(position_rule=rule) for rule in ("offset", "size", "antialias")}
    for rule, patches in results.items():
        difference = np.abs(patches - encode()).max()
        assert (difference == 0) == (rule == default)
        assert rule == default or difference > 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"position_rule": "sizes"}, "position_rule='sizes' is not a rule. Did you mean size"),
        ({"activation": "relu"}, "activation='relu' is not an activation of DINOv2"),
        ({"tokenizer": "spm.model"}, "no text side. Pass weights=PATH alone"),
        ({"posemb_stage": (32, 32)}, "'posemb_stage' is not an option of dinov2"),
        ({"depth": 3}, "depth=3 contradicts the weights of dinov2, which have 2"),
    ],
)
def test_rejects_options_of_other_families(load, options, words):
    with pytest.raises(UserError, match=words):
        load(original(), **options)


@pytest.mark.parametrize(
    ("convert", "name"),
    [
        (dict, "blocks.1.ls2.gamma"),
        (dict, "pos_embed"),
        (timm, "blocks.1.mlp.fc2.bias"),
        (hugging_face, "encoder.layer.1.attention.attention.key.weight"),
        (hugging_face, "embeddings.cls_token"),
    ],
)
def test_names_missing_array_as_in_the_file(load, convert, name):
    arrays = convert(original(registers=4))
    del arrays[name]
    with pytest.raises(UserError, match=rf"dinov2\.npz .*{name}"):
        load(arrays)


def test_names_arrays_of_a_foreign_file_as_they_are():
    foreign = registry.locate("tips-nano").vision
    with pytest.raises(
        UserError, match=r"no array 'pos_embed' .*first names are encoder/ToTokenSeq"
    ):
        load_backbone("dinov2", weights=foreign)


# Values in the released files, less the mask token, the class token's position and LayerScale (folded in).
@pytest.mark.parametrize(
    ("name", "values", "width", "depth"),
    [
        ("dinov2-s14", 22_056_576, 384, 12),
        ("dinov2-b14", 86_580_480, 768, 12),
        ("dinov2-l14", 304_368_640, 1024, 24),
        ("dinov2-g14", 1_136_480_768, 1536, 40),
        ("dinov2-s14-reg", 22_058_112, 384, 12),
        ("dinov2-b14-reg", 86_583_552, 768, 12),
        ("dinov2-l14-reg", 304_372_736, 1024, 24),
        ("dinov2-g14-reg", 1_136_486_912, 1536, 40),
    ],
)
def test_sizes_give_published_parameter_counts(name, values, width, depth):
    backbone = describe_backbone(name)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backbone.params))
    assert count == values - 2 * width - 2 * depth * width
    images = jax.ShapeDtypeStruct((2, 448, 672, 3), np.float32)
    features = jax.eval_shape(backbone.encode_image, backbone.params, images)
    assert features.patches.shape == (2, 1, 32, 48, width)
    assert features.global_tokens.shape == (2, 1, width)


def test_matches_real_output():
    """Compares with timm's class token for the released ViT-S/14 with registers, where both are stored."""
    if not REAL.exists() or not WEIGHTS.exists():
        pytest.skip("The weights of dinov2-s14-reg are not stored.")
    with np.load(REAL) as data:
        image, expected = data["img"].transpose(1, 2, 0), data["cls_token"]
    model = load_backbone("dinov2-s14-reg", weights=WEIGHTS)
    with jax.default_matmul_precision("highest"):
        found = model.encode_image(model.params, image[None]).global_tokens[0, 0]
    assert np.abs(found - expected).mean() < 1e-5
