"""Parity of the CLIP towers with `transformers.CLIPModel` on random weights, from each file format."""

import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from zsad_jax.backbones import load_backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

VOCABULARY, LENGTH, IMAGE_SIZE = 100, 20, 56
TOLERANCE = 1e-5

# Names of `transformers` -> names of OpenAI, where query, key and value are one matrix.
NAMES = (
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
)


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def reference(request):
    """Returns a tiny model with random parameters: no scale is 1 and no bias 0; heads have width 64."""
    common = {"hidden_act": request.param, "projection_dim": 24}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={
                "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
                "num_attention_heads": 1, "vocab_size": VOCABULARY,
                "max_position_embeddings": LENGTH, "bos_token_id": VOCABULARY - 2,
                "eos_token_id": VOCABULARY - 1, **common,
            },
            vision_config={
                "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
                "num_attention_heads": 2, "patch_size": 14, "image_size": IMAGE_SIZE, **common,
            },
            projection_dim=24,
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if around_one else 0.1 * noise)
        model.logit_scale.fill_(3.0)
    return request.param, model


def hugging_face(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def openai(model):
    arrays = {}
    for name, array in hugging_face(model).items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        transposed = name in ("visual.proj", "text_projection")
        arrays[name] = np.ascontiguousarray(array.T) if transposed else array
    for found in [name for name in arrays if ".self_attn.q_proj." in name]:
        rows = [arrays.pop(found.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        arrays[found.replace(".self_attn.q_proj.", ".attn.in_proj_")] = np.concatenate(rows)
    return arrays


@pytest.fixture(scope="module")
def ours(reference, tmp_path_factory):
    """Loads our model from a file in the format of Hugging Face."""
    activation, model = reference
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(hugging_face(model), path)
    return load_backbone("clip", weights=path, activation=activation)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def texts():
    """Returns texts of several lengths, padded with the end token as in Hugging Face."""
    rng = np.random.default_rng(2)
    ids = rng.integers(1, VOCABULARY - 2, (4, LENGTH)).astype(np.int32)
    ids[:, 0] = VOCABULARY - 2
    lengths = np.array([LENGTH, 7, 2, 11])[:, None]
    ids[np.arange(LENGTH) >= lengths - 1] = VOCABULARY - 1
    return ids, (np.arange(LENGTH) >= lengths).astype(np.int32)


def assert_close(actual, expected):
    actual, expected = np.asarray(actual), expected.numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def pixels(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_image_side(reference, ours, images):
    model = reference[1]

    @jax.jit
    def encode(params, images):
        options = {}, {"layers": (1, 3, 4)}, {"cls_norm": False}
        return [ours.encode_image(params, images, **one) for one in options]

    with jax.default_matmul_precision("highest"):
        features, several, unnormed = encode(ours.params, images)
    with torch.no_grad():
        vision = model.vision_model(pixels(images), output_hidden_states=True)
        pooled = model.visual_projection(vision.pooler_output)
        normed = [model.vision_model.post_layernorm(x[:, 1:]) for x in vision.hidden_states]
        patches = [model.visual_projection(x) for x in normed]
        bare = model.visual_projection(vision.last_hidden_state[:, 0])
    assert_close(features.global_tokens[:, 0], pooled)
    assert_close(features.patches.reshape(3, 16, 24), patches[-1])
    assert_close(unnormed.global_tokens[:, 0], bare)
    for index, layer in enumerate((1, 3, 4)):
        assert_close(several.patches[:, index].reshape(3, 16, 24), patches[layer])


def test_text_side_and_logits(reference, ours, images, texts):
    model = reference[1]
    ids = torch.from_numpy(texts[0]).long()
    with torch.no_grad():
        expected = model.text_projection(model.text_model(ids).pooler_output)
        logits = model(input_ids=ids, pixel_values=pixels(images)).logits_per_image
    with jax.default_matmul_precision("highest"):
        text = jax.jit(ours.encode_text)(ours.params, *texts)
        image = jax.jit(ours.encode_image)(ours.params, images).global_tokens[:, 0]
    assert_close(text, expected)
    unit = [np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True)) for x in (image, text)]
    assert ours.temperature == pytest.approx(np.exp(-3.0), rel=1e-6)
    assert_close(unit[0] @ unit[1].T / ours.temperature, logits)


def test_all_formats_give_bit_equal_trees(reference, ours, tmp_path):
    activation, model = reference
    theirs, original = hugging_face(model), openai(model)
    custom_text = {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": array
        for name, array in original.items()
    }
    formats = {
        "hugging_face": theirs,
        "openai": original,
        "open_clip_custom_text": custom_text,
        "native": {name: np.asarray(x) for name, x in flatten_dict(ours.params, sep="/").items()},
    }
    for name, arrays in formats.items():
        arrays = {key: np.ascontiguousarray(x).reshape(x.shape) for key, x in arrays.items()}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        save_file(arrays, tmp_path / f"{name}.safetensors")
        for suffix in ("npz", "safetensors"):
            path = tmp_path / f"{name}.{suffix}"
            other = load_backbone("clip", weights=path, activation=activation)
            assert jax.tree.structure(other.params) == jax.tree.structure(ours.params)
            jax.tree.map(np.testing.assert_array_equal, other.params, ours.params)
            assert other.temperature == ours.temperature
