"""Parity of SigLIP with `transformers.SiglipModel` on random weights, and its files with big_vision's."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from zsad_jax.backbones import load_backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
VOCABULARY, LENGTH, IMAGE_SIZE = 50, 12, 48
BLOCK = {
    "layer_norm1": "LayerNorm_0", "layer_norm2": "LayerNorm_1", "layernorm": "LayerNorm_0",
    "self_attn.q_proj": "MultiHeadDotProductAttention_0/query",
    "self_attn.k_proj": "MultiHeadDotProductAttention_0/key",
    "self_attn.v_proj": "MultiHeadDotProductAttention_0/value",
    "self_attn.out_proj": "MultiHeadDotProductAttention_0/out",
    "attention.out_proj": "MultiHeadDotProductAttention_0/out",
    "mlp.fc1": "MlpBlock_0/Dense_0", "mlp.fc2": "MlpBlock_0/Dense_1",
}  # fmt: skip
OUTSIDE = {
    "vision_model.embeddings.patch_embedding": "img/embedding",
    "vision_model.post_layernorm": "img/Transformer/encoder_norm",
    "text_model.final_layer_norm": "txt/Encoder_0/encoder_norm",
    "text_model.head": "txt/head",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def reference(folder):
    """Returns a tiny model with random parameters, none of them 0 or 1; its towers differ in width."""
    common = {"num_hidden_layers": 3, "intermediate_size": 40}
    config = transformers.SiglipConfig(
        text_config={
            "hidden_size": 32, "num_attention_heads": 4, "vocab_size": VOCABULARY,
            "max_position_embeddings": LENGTH, "projection_size": 48, "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": 1, **common,
        },
        vision_config={
            "hidden_size": 48, "num_attention_heads": 4, "image_size": IMAGE_SIZE,
            "patch_size": 16, **common,
        },
    )  # fmt: skip
    model = transformers.SiglipModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def ours(reference, folder):
    return load_backbone("siglip", weights=folder / "model.safetensors", num_heads=4)


def assert_close(actual, expected):
    actual, expected = np.asarray(actual), expected.numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_both_towers_and_logits(reference, ours):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    ids = rng.integers(1, VOCABULARY, (4, LENGTH)).astype(np.int32)
    paddings = (np.arange(LENGTH) >= np.array([[12], [5], [1], [8]])).astype(np.int32)
    ids[paddings == 1] = 0
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        vision = reference.vision_model(pixels)
        text = reference.text_model(torch.from_numpy(ids).long()).pooler_output
        logits = reference(torch.from_numpy(ids).long(), pixels).logits_per_image
    with jax.default_matmul_precision("highest"):
        features = jax.jit(ours.encode_image)(ours.params, images)
        embedded = jax.jit(ours.encode_text)(ours.params, ids, paddings)
    assert_close(features.global_tokens[:, 0], vision.pooler_output)
    assert_close(features.patches.reshape(3, 9, 48), vision.last_hidden_state)
    assert_close(embedded, text)
    image, embedded = (
        np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
        for x in (features.global_tokens[:, 0], embedded)
    )
    assert_close(image @ embedded.T / ours.temperature + ours.logit_bias, logits)


def big_vision(arrays):
    """Returns arrays of Hugging Face in the names and layouts of big_vision, with stacked blocks."""
    found, blocks = {}, {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        side, tower = ("img", "Transformer") if "vision" in name else ("txt", "Encoder_0")
        leaf = {"bias": "bias"}.get(kind, "scale" if "norm" in layer else "kernel")
        if ".layers." in name:
            number, _, part = layer.partition(".layers.")[2].partition(".")
            key = f"{side}/{tower}/encoderblock/{BLOCK[part]}/{leaf}"
            blocks.setdefault(key, {})[int(number)] = with_heads(key, array)
        elif layer in OUTSIDE:
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            found[f"{OUTSIDE[layer]}/{leaf}"] = array
        elif "in_proj" in name:
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                key = f"img/MAPHead_0/MultiHeadDotProductAttention_0/{part}"
                key += "/bias" if name.endswith("bias") else "/kernel"
                found[key] = with_heads(key, rows)
        elif ".head." in name and "probe" not in name:
            key = f"img/MAPHead_0/{BLOCK[layer.partition('.head.')[2]]}/{leaf}"
            found[key] = with_heads(key, array)
    found |= {k: np.stack([x[i] for i in sorted(x)]) for k, x in blocks.items()}
    return found | {
        "img/pos_embedding": arrays["vision_model.embeddings.position_embedding.weight"][None],
        "img/MAPHead_0/probe": arrays["vision_model.head.probe"],
        "txt/Embed_0/embedding": arrays["text_model.embeddings.token_embedding.weight"],
        "txt/pos_embedding": arrays["text_model.embeddings.position_embedding.weight"][None],
        "t": arrays["logit_scale"],
        "b": arrays["logit_bias"],
    }


def with_heads(key, array):
    array = array.T
    if key.endswith(("query/kernel", "key/kernel", "value/kernel")):
        return array.reshape(len(array), 4, -1)
    if key.endswith(("query/bias", "key/bias", "value/bias")):
        return array.reshape(4, -1)
    return array.reshape(4, -1, array.shape[-1]) if key.endswith("out/kernel") else array


def test_formats_give_bit_equal_trees(ours, folder):
    arrays = load_file(folder / "model.safetensors")
    np.savez(folder / "native.npz", **big_vision(arrays))
    prefixed = {f"siglip.{name}": array for name, array in arrays.items()}
    np.savez(folder / "prefixed.npz", **prefixed)
    for name in ("native", "prefixed"):
        other = load_backbone("siglip", weights=folder / f"{name}.npz", num_heads=4)
        jax.tree.map(np.testing.assert_array_equal, other.params, ours.params)
        assert (other.temperature, other.logit_bias) == (ours.temperature, ours.logit_bias)


@pytest.mark.parametrize(
    "name",
    [
        "vision_model.head.attention.in_proj_bias",
        "vision_model.head.probe",
        "vision_model.encoder.layers.1.self_attn.k_proj.weight",
        "text_model.head.weight",
        "logit_bias",
    ],
)
def test_names_missing_array_as_in_the_file(reference, folder, name):
    arrays = load_file(folder / "model.safetensors")
    del arrays[name]
    np.savez(folder / "missing.npz", **arrays)
    with pytest.raises(Exception, match=rf"missing\.npz .*{name}"):
        load_backbone("siglip", weights=folder / "missing.npz", num_heads=4)
