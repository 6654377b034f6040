"""Tests of the TIPS towers against outputs of the reference implementation on tiny random weights."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones import load_backbone, tips
from zsad_jax.backbones.base import Adapters
from zsad_jax.utils.errors import UserError

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "tips"


@pytest.fixture(autouse=True)
def _exact():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def golden(name):
    return dict(np.load(GOLDENS / f"{name}_golden.npz"))


@functools.cache
def backbone(ffn="mlp", lineage="native", **options):
    if lineage == "pytorch":
        options = {"num_heads": 4, **options}
    return load_backbone(
        "tips",
        vision=GOLDENS / f"vision_{ffn}_{lineage}.npz",
        text=GOLDENS / f"text_{lineage}.npz",
        **options,
    )


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


CASES = ("native", "upsample_rect", "downsample")


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("case", [*CASES, "centerpad"])
def test_native_vision_matches_golden(ffn, case):
    data, model = golden(f"vision_{ffn}"), backbone(ffn)
    features = model.encode_image(model.params, data[f"{case}/image"])
    assert_close(features.global_tokens, data[f"{case}/scenic_cls"])
    assert_close(features.patches[:, 0], data[f"{case}/scenic_patch"])


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("tanh", "prefix"), [(None, "torch"), (True, "torch_tanh")])
def test_pytorch_vision_matches_golden(ffn, case, tanh, prefix):
    data = golden(f"vision_{ffn}")
    if f"{case}/{prefix}_cls" not in data:
        prefix = "torch"  # a SwiGLU tower has no GELU
    options = {} if tanh is None else {"gelu_approximate": tanh}
    model = backbone(ffn, "pytorch", **options)
    features = model.encode_image(model.params, data[f"{case}/image"])
    assert_close(features.global_tokens, data[f"{case}/{prefix}_cls"])
    assert_close(features.patches[:, 0], data[f"{case}/{prefix}_patch"])


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_lineages_hold_same_weights(ffn):
    """Compares with the PyTorch SwiGLU file, whose LayerScale and class-token position are folded in."""
    native, other = backbone(ffn).params["vision"], backbone(ffn, "pytorch").params["vision"]
    jax.tree.map(lambda a, b: assert_close(b, np.asarray(a), 1e-6), native, other)


@pytest.mark.parametrize("case", CASES)
def test_position_grid_matches_golden(case):
    data, model = golden("vision_mlp"), backbone()
    grid = model.params["vision"]["encoder"]["ToTokenSequence_0"]["posembed_input"]
    expected = data[f"{case}/posemb_scenic"]
    assert_close(tips.resize_position_grid(grid, expected.shape[1:3]), expected, 1e-6)


def test_two_stage_position_grid_matches_golden():
    """Checks that resizing through the grid of the PyTorch files differs from resizing directly."""
    data = golden("vision_mlp")
    direct, staged = backbone(), backbone(posemb_stage=(8, 8))
    image = data["twostage/image"]
    for model, name in ((direct, "scenic_direct"), (staged, "scenic_baked")):
        features = model.encode_image(model.params, image)
        assert_close(features.global_tokens, data[f"twostage/{name}_cls"])
        assert_close(features.patches[:, 0], data[f"twostage/{name}_patch"])


def test_layers_count_from_one_and_pass_final_norm():
    data, model = golden("vision_mlp"), backbone()
    image = data["native/image"]
    features = model.encode_image(model.params, image, layers=(3, 1))
    assert features.patches.shape == (2, 2, 4, 4, 64)
    assert_close(features.patches[:, 0], data["native/scenic_patch"])
    with pytest.raises(UserError, match="layers 1 to 3"):
        model.encode_image(model.params, image, layers=(0,))


@pytest.mark.parametrize(
    ("lineage", "options", "expected"),
    [
        ("native", {}, "scenic_text"),
        ("pytorch", {}, "torch_text"),
        ("pytorch", {"text_ln_eps": 1e-6}, "torch_eps1e-6_text"),
    ],
)
def test_text_matches_golden(lineage, options, expected):
    data, model = golden("text"), backbone("mlp", lineage, **options)
    assert_close(model.encode_text(model.params, data["ids"], data["paddings"]), data[expected])


def test_padding_only_text_is_zero():
    model = backbone()
    text = model.encode_text(model.params, np.zeros((1, 4), np.int32), np.ones((1, 4), np.int32))
    np.testing.assert_array_equal(text, 0)


def test_inserted_prompts_do_not_depend_on_padding():
    """Compares a text with and without padding; prompts are valid tokens that are not pooled."""
    data, model = golden("text"), backbone()
    kernels = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
    embeddings = model.embed_tokens(model.params, data["ids"][2:3])

    def encode(length, insert):
        texts = embeddings[:, :length], data["paddings"][2:3, :length]
        options = {"insert": insert, "adapters": Adapters(kernels)}
        return model.encode_prompts(model.params, *texts, data["deep_tokens"][:, None], **options)

    assert_close(encode(16, True), encode(7, True))
    assert np.abs(encode(7, True) - encode(7, False)).max() > 1e-3


def test_deep_prompts_are_used_and_then_removed():
    """Checks that prompts change the text features, except for depth 0, where they are ignored."""
    data, model = golden("text"), backbone()
    embeddings = model.embed_tokens(model.params, data["ids"])
    plain = model.encode_prompts(model.params, embeddings, data["paddings"])
    deep = model.encode_prompts(
        model.params, embeddings, data["paddings"], jnp.asarray(data["deep_tokens"])[:, None]
    )
    per_text = jnp.broadcast_to(data["deep_tokens"][:, None], (2, 6, 4, 64))
    same = model.encode_prompts(model.params, embeddings, data["paddings"], per_text)
    assert plain.shape == deep.shape
    assert np.abs(plain - deep).max() > 1e-3
    np.testing.assert_allclose(deep, same, atol=1e-6)


def test_attention_by_head_equals_plain_form():
    """Uses a long sequence, which takes a different code path on the CPU."""
    model = backbone()
    image = jax.random.uniform(jax.random.key(0), (2, 14 * 17, 14 * 16, 3))
    by_head = model.encode_image(model.params, image)
    plain = backbone(attention="plain").encode_image(model.params, image)
    assert_close(by_head.patches, np.asarray(plain.patches))
    assert np.abs(by_head.patches - plain.patches).max() > 0


def test_bfloat16_is_close_to_float32():
    data = golden("vision_mlp")
    exact, half = backbone(), backbone(dtype="bfloat16")
    a = exact.encode_image(exact.params, data["native/image"]).global_tokens
    b = half.encode_image(half.params, data["native/image"]).global_tokens
    assert b.dtype == jnp.float32
    cosine = jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
    assert cosine.min() > 0.999
    assert np.abs(a - b).max() > 1e-6


def test_sizes_and_temperature_are_inferred_from_arrays():
    model = backbone()
    assert (model.vision_depth, model.text_depth, model.patch_size) == (3, 3, 14)
    assert (model.embed_dim, model.num_global_tokens) == (64, 2)
    assert model.preprocess.image_size == 56
    assert model.temperature == pytest.approx(0.05)
    assert not model.demonstration


def test_accepts_confirmed_overrides_and_rejects_contradictory_ones():
    backbone(depth=3, num_heads=4)
    with pytest.raises(UserError, match="depth=24 contradicts"):
        backbone(depth=24)
    with pytest.raises(UserError, match=r"4 attention heads, not 2\. Omit"):
        backbone(num_heads=2)
    with pytest.raises(UserError, match="'color' is not an option"):
        backbone(color="red")
    with pytest.raises(UserError, match="float16"):
        backbone(dtype="float16")


@pytest.mark.parametrize(
    ("lineage", "missing", "misshapen", "unexpected"),
    [
        ("native", "encoder/encoder_norm/bias", "encoder/encoder_norm/scale", "extra/array"),
        ("pytorch", "norm.bias", "norm.weight", "extra.array"),
        ("pytorch", "blocks.1.attn.qkv.bias", "blocks.2.mlp.fc2.weight", "blocks.1.extra"),
        ("pytorch", "blocks.1.attn.proj.weight", "patch_embed.proj.bias", "transformer.extra"),
    ],
)
def test_lists_all_wrong_arrays(tmp_path, lineage, missing, misshapen, unexpected):
    arrays = dict(np.load(GOLDENS / f"vision_mlp_{lineage}.npz"))
    arrays.pop(missing)
    arrays[misshapen] = arrays[misshapen][:5]
    arrays[unexpected] = np.zeros(3, np.float32)
    path = tmp_path / "broken.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError) as error:
        load_backbone("tips", vision=path, text=GOLDENS / f"text_{lineage}.npz", num_heads=4)
    message = str(error.value)
    assert all(name in message for name in ("broken.npz", f"1 missing: {missing}", unexpected))
    assert re.search(rf"1 of the wrong shape: {re.escape(misshapen)} ", message)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cls_token", np.ravel),
        ("pos_embed", lambda array: array[:, :-1]),
        ("blocks.1.ls1.gamma", lambda array: array[:5]),
        ("blocks.0.attn.qkv.weight", np.ravel),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_reports_wrong_array_of_pytorch_file(tmp_path, name, change, missing):
    arrays = dict(np.load(GOLDENS / "vision_mlp_pytorch.npz"))
    array = arrays.pop(name)
    if not missing:
        arrays[name] = change(array)
    path = tmp_path / "broken.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"broken\.npz .*{re.escape(name)}"):
        load_backbone("tips", vision=path, text=GOLDENS / "text_pytorch.npz", num_heads=4)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "temperature_contrastive",
            np.float32(-0.05),
            "temperature -0.05; expected a positive number",
        ),
        ("temperature_contrastive", np.float32(0), "temperature 0; expected a positive number"),
        ("temperature_contrastive", np.int64(1), "not floating-point: temperature_contrastive"),
        ("token_emb/emb_var", np.zeros((0, 64), np.float32), "no array 'token_emb/emb_var'"),
    ],
)
def test_rejects_text_files_without_usable_values(tmp_path, name, value, words):
    with np.load(GOLDENS / "text_native.npz") as good:
        assert name in good
        np.savez(tmp_path / "text.npz", **{**good, name: value})
    with pytest.raises(UserError, match=words):
        load_backbone("tips", vision=GOLDENS / "vision_mlp_native.npz", text=tmp_path / "text.npz")


def test_rejects_block_numbers_that_no_tower_has(tmp_path):
    with np.load(GOLDENS / "text_native.npz") as good:
        arrays = {name.replace("block_0", "block_99999999"): array for name, array in good.items()}
    np.savez(tmp_path / "text.npz", **arrays)
    with pytest.raises(UserError, match="encoderblock_0"):
        load_backbone("tips", vision=GOLDENS / "vision_mlp_native.npz", text=tmp_path / "text.npz")


def test_detects_swapped_files():
    with pytest.raises(UserError, match="swapped"):
        load_backbone(
            "tips", vision=GOLDENS / "text_native.npz", text=GOLDENS / "vision_mlp_native.npz"
        )


def test_tokenizer_is_required_only_for_text():
    with pytest.raises(UserError, match="tokenizer"):
        backbone().tokenize(["a photo"])
