"""Tests of the form "open_clip" of CLIP, and of options of the towers that single methods need."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones import load_backbone, tokenizers
from zsad_jax.backbones.base import Adapters
from zsad_jax.methods.shared.similarity import normalize

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
MERGES = GOLDENS.parents[2] / "shared/weights/tokenizers" / tokenizers.CLIP_MERGES
LAYERS = (2, 4, 6, 8)  # of the goldens


@pytest.fixture(autouse=True, scope="module")
def exact():
    """Runs matrix products in full float32 precision."""
    with jax.default_matmul_precision("highest"):
        yield


def read(method):
    with np.load(GOLDENS / method / f"{method}_tiny.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def openai():
    path = GOLDENS / "tiny_clip_zsad" / "weights.npz"
    return load_backbone("clip", weights=path, num_heads=4, text_num_heads=3)


@pytest.fixture(scope="module")
def clip(openai):
    return openai.in_form("open_clip")


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def encode_image(model, images, **options):
    """Encodes images [b, 3, H, W] of a golden in one compiled call."""
    run = jax.jit(lambda params, images: model.encode_image(params, images, **options))
    return run(model.params, images.transpose(0, 2, 3, 1))


def dense(golden, name, x):
    return x @ golden[f"{name}.weight"].T + golden.get(f"{name}.bias", 0)


# --- forms -----------------------------------------------------------------------------------------------


def test_open_clip_form_matches_golden_of_april_gan(clip):
    golden = read("aprilgan")
    features = encode_image(clip, golden["in/images"], layers=LAYERS, patch_norm=False)
    assert_close(features.global_tokens[:, 0], golden["out/image_features_raw"])
    for layer, patches in enumerate(np.moveaxis(features.patches, 1, 0)):
        assert_close(patches.reshape(2, 36, -1), golden[f"out/patch_tokens_{layer}"][:, 1:])
    ids = golden["in/token_ids_obj0_abnormal"][:, :20]
    text = normalize(jax.jit(clip.encode_text)(clip.params, ids, np.int32(ids == 0)))
    assert_close(normalize(text.mean(axis=0)), golden["out/text_features_0"][:, 1])


def test_forms_share_parameters(openai, clip):
    assert (openai.form, clip.form) == ("openai", "open_clip")
    assert clip.params is openai.params
    np.testing.assert_array_equal(clip.tokenize(["object"]), openai.tokenize(["object"]))
    again, images = clip.in_form("openai"), np.ones((1, 84, 84, 3), np.float32)
    first, second, other = (
        model.encode_image(model.params, images).patches for model in (openai, again, clip)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


def test_family_without_forms_is_unchanged():
    backbone = load_backbone("tips-nano")
    assert backbone.in_form("open_clip") is backbone.in_form("openai") is backbone


# --- AA-CLIP ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aaclip():
    return read("aaclip")


@pytest.mark.parametrize(
    ("path", "images", "name"),
    [("through_batch", 2, ""), ("through_batch", 1, "batch1_"), ("through", 1, None)],
)
def test_value_value_attention_through_blocks(clip, aaclip, path, images, name):
    """Attention over the images of a batch is that of the golden; over a single one, it is the values alone."""
    given = aaclip["in/images"][:images]
    token = normalize(encode_image(clip, given).global_tokens[:, 0])
    found = encode_image(clip, given, layers=LAYERS, vv_from=4, vv_path=path).patches
    found = normalize(found.reshape(images, len(LAYERS), 36, -1)) + token[:, None, None]
    if name is None:  # block 2 is before the first one with this attention
        expected = aaclip["stage1/patch_features_batch1_0"]
        assert_close(found[:, 0], expected)
        assert np.abs(found[:, 1] - aaclip["stage1/patch_features_batch1_1"]).max() > 1e-2
        return
    for layer in range(len(LAYERS)):
        assert_close(found[:, layer], aaclip[f"stage1/patch_features_{name}{layer}"])


def test_adapters_of_vision_tower_match_golden(clip, aaclip):
    kernels = [aaclip[f"param/image_adapter.layer_adapters.{i}.fc.0.weight"].T for i in range(5)]
    options = {"layers": LAYERS, "patch_norm": False, "adapters": Adapters(np.stack(kernels))}
    patches = encode_image(clip, aaclip["in/images"], **options).patches
    post = clip.params["vision"]["ln_post"]
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True)
    normed = (patches - mean) / np.sqrt(variance + 1e-5) * post["scale"] + post["bias"]
    normed = normed.reshape(2, len(LAYERS), 36, -1)
    for layer in range(len(LAYERS)):
        found = dense(aaclip, f"param/image_adapter.seg_proj.{layer}.fc", normed[:, layer])
        assert_close(normalize(found), aaclip[f"stage2/seg_tokens_{layer}"])


needs_merges = pytest.mark.skipif(not MERGES.is_file(), reason="needs the published merge file")


@needs_merges
def test_adapters_of_text_tower_match_golden(clip, aaclip):
    with_state = (f"a {{}} with {word}" for word in ("flaw", "defect", "damage"))
    states = ("{}", "a {}", "the {}"), ("a damaged {}", "a broken {}", *with_state)
    kernels = np.stack([aaclip[f"param/text_adapter.{i}.fc.0.weight"].T for i in range(2)])
    found = []
    for state in states:
        filled = [one.format("dark bottle") for one in state]
        texts = [f"{front}{one}." for one in filled for front in ("", "a photo of ")]
        tokens = tokenizers.tokenize_bpe(texts, path=MERGES, length=77, vocabulary=49408)
        text = clip.encode_text(clip.params, *tokens, adapters=Adapters(kernels), project=False)
        text = jax.nn.leaky_relu(dense(aaclip, "param/text_adapter.2.fc.0", text))
        found.append(normalize(normalize(text).mean(axis=0)))
    assert_close(np.stack(found, axis=1), aaclip["test/text_features_obj0"])


# --- AdaCLIP ---------------------------------------------------------------------------------------------


@needs_merges
def test_prompts_of_both_towers_match_golden(openai):
    clip, golden = openai.in_form("adaclip"), read("adaclip")
    images = golden["in/images"]
    plain = encode_image(clip, images).global_tokens[:, 0]

    def prompts(tower, dynamic):
        static = [golden[f"param/{tower}_prompter.static_prompts.{i}"] for i in range(3)]
        name = f"param/dynamic_{dynamic}_prompt_generator.head"
        tokens = jnp.stack([dense(golden, f"{name}.{i}", plain) for i in range(3)], axis=1)
        return np.stack(static)[:, None] + tokens[None]  # [depth, image, token, width]

    options = {"layers": LAYERS, "patch_norm": False, "prompts": prompts("visual", "visual")}
    features = encode_image(clip, images, **options)
    token = dense(golden, "param/cls_token_layer.head.0", features.global_tokens[:, 0])
    assert_close(normalize(token), golden["SD_VL_nohsf/proj_cls"])
    for layer in range(len(LAYERS)):
        patches = features.patches[:, layer].reshape(1, 36, -1)
        found = normalize(dense(golden, f"param/patch_token_layer.head.{layer}", patches))
        assert_close(found, golden[f"SD_VL_nohsf/proj_patch_{layer}"])
    # The words are overwritten from the second block on.
    kinds = ("bad", "a"), ("low resolution", "the"), ("bad", "the"), ("cropped", "the")
    states = "damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"
    texts = [
        f"a {kind} photo of {article} {state.format('metal nut')}."
        for kind, article in kinds
        for state in states
    ]
    deep = prompts("text", "text")[1:]
    tokens = tokenizers.tokenize_bpe(texts, path=MERGES, length=77, vocabulary=49408)
    embeddings = clip.embed_tokens(clip.params, tokens[0])
    text = normalize(clip.encode_prompts(clip.params, embeddings, tokens[1], deep))
    assert_close(normalize(text.mean(axis=0)), golden["SD_VL_nohsf/text_features"][0, :, 1])


# --- VCP-CLIP --------------------------------------------------------------------------------------------


def test_inserted_prompts_and_extra_norm_match_golden(clip):
    golden = read("vcpclip")
    names = ("prompt_embeddings", "deep_prompt_embeddings")
    deep = np.concatenate([golden[f"param/clip.{name}"] for name in names])
    deep = dense(golden, "param/clip.prompt_proj", deep)[:, None]
    norm = {"scale": golden["param/clip.prompt_norm.weight"]}
    norm["bias"] = golden["param/clip.prompt_norm.bias"]
    for state, index in (("normal", 0), ("abnormal", 1)):
        (ids,) = golden[f"in/token_ids_{state}"]
        ids = ids[: np.flatnonzero(ids)[-1] + 1]
        (at,) = np.flatnonzero(ids == 49408)
        words = clip.embed_tokens(clip.params, np.delete(ids, at)[None])[0]
        context = golden["out/class_context_tokens"]
        rows = [np.concatenate([words[:at], one, words[at:]]) for one in context]
        text = jax.jit(clip.encode_prompts, static_argnames=("insert", "project"))(
            clip.params,
            np.stack(rows),
            np.zeros((2, len(rows[0])), int),
            deep,
            insert=True,
            extra_norm=norm,
            project=False,  # the golden has another projection
        )
        text = text @ golden["clip_override/text_projection"]
        assert_close(normalize(text), golden["out/text_embeddings"][:, index])
