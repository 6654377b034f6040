import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from zsad_jax.backbones import clip, registry
from zsad_jax.backbones.checkpoints import clip as clip_checkpoints
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.backbones.transformer import tree_of
from zsad_jax.utils.errors import UserError

VISION, TEXT = registry.clip_sizes(
    patch_size=4, grid=3, width=128, depth=2, text_width=64, embed_dim=24, text_depth=3, vocabulary=50
)  # fmt: skip
# Repeated here, so that a mistake in the library's tables is detected.
BLOCK_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OUTSIDE = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}


def make_openai():
    """Returns random arrays with OpenAI's names and scaled-down shapes."""
    rng = np.random.default_rng(0)
    shapes = {
        "visual.conv1.weight": (128, 3, 4, 4),
        "visual.class_embedding": (128,),
        "visual.positional_embedding": (10, 128),
        "visual.proj": (128, 24),
        "token_embedding.weight": (50, 64),
        "positional_embedding": (77, 64),
        "text_projection": (64, 24),
        "logit_scale": (),
        **{f"visual.ln_{at}.{k}": (128,) for at in ("pre", "post") for k in ("weight", "bias")},
        **{f"ln_final.{k}": (64,) for k in ("weight", "bias")},
    }
    for prefix, width, depth in (("visual.", 128, 2), ("", 64, 3)):
        for i in range(depth):
            block = f"{prefix}transformer.resblocks.{i}."
            for name, rows, columns in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                shapes |= {f"{block}{name}weight": (rows, columns), f"{block}{name}bias": (rows,)}
            for j in (1, 2):
                shapes |= {f"{block}ln_{j}.{kind}": (width,) for kind in ("weight", "bias")}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def to_hugging_face(openai):
    renamed = {OUTSIDE[name]: array for name, array in openai.items() if name in OUTSIDE}
    renamed["visual_projection.weight"] = openai["visual.proj"].T
    renamed["text_projection.weight"] = openai["text_projection"].T
    for name, array in openai.items():
        if ".resblocks." not in f".{name}":
            continue
        side = "vision" if name.startswith("visual.") else "text"
        number, _, rest = name.split("resblocks.")[1].partition(".")
        block = f"{side}_model.encoder.layers.{number}."
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for letter, rows in zip("qkv", np.split(array, 3), strict=True):
                renamed[f"{block}self_attn.{letter}_proj.{kind}"] = rows
        else:
            part, _, kind = rest.rpartition(".")
            renamed[f"{block}{BLOCK_PARTS[part]}.{kind}"] = array
    return renamed


@pytest.fixture(scope="module")
def openai():
    return make_openai()


def towers(arrays, **options):
    """Converts arrays to trees that fit the modules."""
    native = clip_checkpoints.from_arrays(arrays, source="The file x", **options)
    vision, text = clip_checkpoints.read_sizes(native)
    return native.fit(
        {
            "vision": tree_of(clip.VisionEncoder(clip.VisionSizes(**vision))),
            "text": tree_of(clip.TextEncoder(clip.TextSizes(**text))),
        }
    )


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def expected(openai):
    return towers(openai)


def test_arrays_are_placed_correctly(openai, expected):
    vision, text = (flatten_dict(expected[side], sep="/") for side in ("vision", "text"))
    rng = np.random.default_rng(1)
    image = rng.random((4, 4, 3), np.float32)
    convolved = np.einsum("ocij,ijc->o", openai["visual.conv1.weight"], image)
    kernel = vision["embedding/kernel"]
    np.testing.assert_allclose(np.einsum("ijco,ijc->o", kernel, image), convolved, rtol=1e-4)
    x = rng.random(64, np.float32)
    block = "transformer/encoderblock_2/"
    attention = f"{block}MultiHeadDotProductAttention_0/"
    joint = openai["transformer.resblocks.2.attn.in_proj_weight"] @ x
    for i, name in enumerate(("query", "key", "value")):
        found = np.einsum("w,whk->hk", x, text[f"{attention}{name}/kernel"]).reshape(-1)
        np.testing.assert_allclose(found, joint[64 * i : 64 * i + 64], rtol=1e-4, atol=1e-4)
        bias = openai["transformer.resblocks.2.attn.in_proj_bias"][64 * i : 64 * i + 64]
        np.testing.assert_array_equal(text[f"{attention}{name}/bias"].reshape(-1), bias)
    out = np.einsum("hk,hkw->w", x.reshape(1, 64), text[f"{attention}out/kernel"])
    wanted = openai["transformer.resblocks.2.attn.out_proj.weight"] @ x
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)
    hidden = openai["transformer.resblocks.2.mlp.c_fc.weight"] @ x
    np.testing.assert_allclose(
        x @ text[f"{block}MlpBlock_0/Dense_0/kernel"], hidden, rtol=1e-4, atol=1e-4
    )
    for native, name in (
        (vision["projection"], "visual.proj"),
        (vision["positional_embedding"], "visual.positional_embedding"),
        (vision["ln_pre/scale"], "visual.ln_pre.weight"),
        (vision["ln_post/bias"], "visual.ln_post.bias"),
        (text["projection"], "text_projection"),
        (text["token_embedding"], "token_embedding.weight"),
        (text["ln_final/scale"], "ln_final.weight"),
        (text[f"{block}LayerNorm_1/scale"], "transformer.resblocks.2.ln_2.weight"),
        (text["logit_scale"], "logit_scale"),
    ):
        np.testing.assert_array_equal(native, openai[name])


def test_sizes_are_inferred_from_arrays(openai):
    found = clip_checkpoints.read_sizes(clip_checkpoints.from_arrays(openai, source="x"))
    # Arrays do not show the activation.
    activation = {"activation": VISION["activation"]}
    assert [one | activation for one in found] == [VISION, TEXT]


VARIANTS = {
    "hugging_face": to_hugging_face,
    "hugging_face_old": lambda arrays: {
        **to_hugging_face(arrays),
        "text_model.embeddings.position_ids": np.arange(77)[None],
        "vision_model.embeddings.position_ids": np.arange(10)[None],
    },
    "openai_archive": lambda arrays: {
        **arrays,
        **{name: np.array(7) for name in ("input_resolution", "context_length", "vocab_size")},
    },
    "open_clip_custom_text": lambda arrays: {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": array
        for name, array in arrays.items()
    },
    "open_clip_bias": lambda arrays: {**arrays, "logit_bias": np.float32(-10)},
    "one_number_in_a_row": lambda arrays: {**arrays, "logit_scale": arrays["logit_scale"][None]},
    "data_parallel": lambda arrays: {f"module.{name}": array for name, array in arrays.items()},
    "native": lambda arrays: flatten_dict(towers(arrays), sep="/"),
    "openai_again": lambda arrays: clip_checkpoints.to_openai(towers(arrays)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_names_give_same_tree(openai, expected, variant):
    arrays = VARIANTS[variant](openai)
    assert_same_bits(towers({name: np.asarray(array) for name, array in arrays.items()}), expected)


@pytest.mark.parametrize("variant", ["hugging_face", "openai_archive"])
def test_both_formats_give_same_tree(openai, expected, tmp_path, variant):
    arrays = {k: np.ascontiguousarray(v) for k, v in VARIANTS[variant](openai).items()}
    arrays["logit_scale"] = arrays["logit_scale"].reshape(())
    np.savez(tmp_path / "clip.npz", **arrays)
    save_file(arrays, tmp_path / "clip.safetensors")
    for suffix in ("npz", "safetensors"):
        assert_same_bits(towers(read_arrays(tmp_path / f"clip.{suffix}")), expected)


def test_roundtrip_to_openai_names(openai):
    again = clip_checkpoints.to_openai(towers(openai))
    assert again.keys() == openai.keys()
    for name, array in openai.items():
        np.testing.assert_array_equal(again[name], array)


def test_accepts_head_counts(openai):
    tree = towers(openai, num_heads=4)
    name = "MultiHeadDotProductAttention_0"
    for side, width in (("vision", 32), ("text", 16)):
        attention = tree[side]["transformer"]["encoderblock_0"][name]
        assert attention["query"]["kernel"].shape[1:] == (4, width)
    tree = towers(openai, num_heads=4, text_num_heads=8)
    assert tree["text"]["transformer"]["encoderblock_1"][name]["out"]["kernel"].shape == (8, 8, 64)
    assert_same_bits(towers(flatten_dict(tree, sep="/")), tree)


def test_rejects_head_counts_that_do_not_divide_width(openai):
    with pytest.raises(UserError, match="128 wide, which is not a multiple of 5"):
        towers(openai, num_heads=5)
    native = flatten_dict(towers(openai), sep="/")
    with pytest.raises(UserError, match=r"text tower\) has 1 attention heads, not 2"):
        towers(native, num_heads=2)
    narrow = {**openai, "visual.class_embedding": np.zeros(96, np.float32)}
    with pytest.raises(UserError, match=r"width of 96 is not a multiple of 64\. Pass num_heads"):
        towers(narrow)


def test_rejects_empty_arrays(openai):
    for name in ("visual.proj", "transformer.resblocks.0.mlp.c_fc.weight"):
        with pytest.raises(UserError, match=rf"no array '{name} .* of the expected shape"):
            towers({**openai, name: openai[name][:0]})


def test_lists_all_problems(openai):
    wrong = {
        **openai,
        "visual.ln_post.bias": np.zeros(7, np.float32),
        "transformer.resblocks.1.mlp.c_proj.weight": np.zeros((3, 4), np.float32),
        "transformer.resblocks.1.attn.out_proj.weight": np.zeros(5, np.float32),
        "transformer.resblocks.2.attn.in_proj_bias": np.zeros(100, np.float32),
        "transformer.resblocks.2.mlp.gate.weight": np.zeros(3, np.float32),
        "transformer.resblocks.0.ln_2.bias": np.full(64, np.nan, np.float32),
    }
    del wrong["visual.transformer.resblocks.1.ln_1.weight"]
    with pytest.raises(UserError) as error:
        towers(wrong)
    message = str(error.value)
    for part in (
        "1 missing: visual.transformer.resblocks.1.ln_1.weight (vision tower);",
        "1 unexpected: transformer.resblocks.2.mlp.gate.weight (text tower);",
        "4 of the wrong shape",
        "visual.ln_post.bias (vision tower) (here vision/ln_post/bias) (7,), expected (128,)",
        "transformer.resblocks.1.mlp.c_proj.weight (text tower)",
        "encoderblock_1/MlpBlock_0/Dense_1/kernel) (4, 3), expected (256, 64)",
        "transformer.resblocks.2.attn.in_proj_bias (text tower) (100,)",
        "1 not finite: transformer.resblocks.0.ln_2.bias (text tower))",
    ):
        assert part in message


NAMED = {
    "openai": (lambda arrays: arrays, lambda name: name),
    "hugging_face": (
        to_hugging_face,
        lambda name: next(iter(to_hugging_face({name: np.zeros((3, 3)), **PROJECTIONS}))),
    ),
    "open_clip": (
        VARIANTS["open_clip_custom_text"],
        lambda name: name if name.startswith("visual.") else f"text.{name}",
    ),
    "data_parallel": (VARIANTS["data_parallel"], lambda name: f"module.{name}"),
}
PROJECTIONS = {name: np.zeros((3, 3)) for name in ("visual.proj", "text_projection")}


@pytest.mark.parametrize("names", NAMED)
@pytest.mark.parametrize(
    "lost",
    [
        ("visual.conv1.weight",),
        ("visual.class_embedding",),
        ("token_embedding.weight",),
        ("positional_embedding",),
        ("visual.ln_pre.bias", "ln_final.bias"),
    ],
)
def test_missing_arrays_have_the_names_of_the_file(openai, names, lost):
    rename, rename_one = NAMED[names]
    own = {rename_one(name): "vision" if "visual" in name else "text" for name in lost}
    arrays = {name: array for name, array in rename(openai).items() if name not in own}
    assert len(arrays) == len(rename(openai)) - len(lost)
    with pytest.raises(UserError) as error:
        towers(arrays)
    for name, side in own.items():
        assert f"{name} ({side} tower)" in str(error.value)


def test_blocks_are_listed_under_names_of_the_file(openai):
    arrays = to_hugging_face(openai)
    del arrays["text_model.encoder.layers.2.self_attn.k_proj.bias"]
    del arrays["vision_model.encoder.layers.0.mlp.fc1.weight"]
    with pytest.raises(
        UserError, match=r"no array '.*layers\.0\.mlp\.fc1\.weight \(vision tower\)'"
    ):
        towers(arrays)
    arrays["vision_model.encoder.layers.0.mlp.fc1.weight"] = np.zeros((512, 128), np.float32)
    with pytest.raises(
        UserError,
        match=r"1 missing: text_model\.encoder\.layers\.2\.self_attn\.k_proj\.bias \(text",
    ):
        towers(arrays)


def test_native_files_use_native_names(openai):
    arrays = flatten_dict(towers(openai), sep="/")
    del arrays["text/ln_final/bias"], arrays["vision/ln_pre/scale"]
    with pytest.raises(UserError, match=r"2 missing: .*text/ln_final/bias"):
        towers(arrays)


def test_reports_missing_tower(openai):
    vision = {name: array for name, array in openai.items() if name.startswith("visual.")}
    with pytest.raises(UserError, match=r"no array 'token_embedding.weight \(text tower\)'"):
        towers(vision | {"logit_scale": openai["logit_scale"]})
    text = {name: array for name, array in openai.items() if name not in vision}
    with pytest.raises(UserError, match=r"no array 'visual.class_embedding .* ln_final\.bias"):
        towers(text)
    with pytest.raises(UserError, match=r"no array 'visual.* names are norm\.weight"):
        towers({"norm.weight": np.zeros(3)})


def test_shapes_do_not_need_values():
    trees = {
        "vision": tree_of(clip.VisionEncoder(clip.VisionSizes(**VISION))),
        "text": tree_of(clip.TextEncoder(clip.TextSizes(**TEXT))),
    }
    shapes = jax.eval_shape(clip_checkpoints.to_openai, trees)
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in make_openai().items()}


@pytest.mark.parity
def test_hugging_face_state_dict_gives_same_tree(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    common = {"hidden_act": "quick_gelu", "projection_dim": 24}
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
            "num_attention_heads": 1, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49,
            **common,
        },
        vision_config={
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 2, "patch_size": 4, "image_size": 12, **common,
        },
        projection_dim=24,
    )  # fmt: skip
    torch.manual_seed(0)
    state = transformers.CLIPModel(config).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    save_file(arrays, tmp_path / "hf.safetensors")
    tree = towers(read_arrays(tmp_path / "hf.safetensors"))
    openai = {name: np.asarray(x) for name, x in clip_checkpoints.to_openai(tree).items()}
    assert to_hugging_face(openai).keys() == arrays.keys()
    for name, array in to_hugging_face(openai).items():
        np.testing.assert_array_equal(array, arrays[name])
    assert_same_bits(towers(openai), tree)
