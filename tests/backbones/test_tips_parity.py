"""Parity of the TIPS towers with TIPSv2 of `transformers` on random weights."""

import re

import jax
import numpy as np
import pytest

from zsad_jax.backbones import load_backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tipsv2 = pytest.importorskip("transformers.models.tipsv2", reason="transformers without TIPSv2")

pytestmark = pytest.mark.parity

WIDTH, DEPTH, HEADS, IMAGE_SIZE, VOCABULARY = 64, 3, 4, 56, 100
TOLERANCE = 1e-4

# Names of `transformers` -> names of the PyTorch files.
VISION_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
TEXT_NAMES = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^final_layer_norm\.", "ln_final."),
)


@pytest.fixture(scope="module", params=["mlp", "swiglu"])
def reference(request):
    """Returns a tiny model with random parameters: no scale is 1, no bias and no token is 0."""
    model = tipsv2.Tipsv2Model(
        tipsv2.Tipsv2Config(
            vision_config={
                "hidden_size": WIDTH,
                "num_hidden_layers": DEPTH,
                "num_attention_heads": HEADS,
                "image_size": IMAGE_SIZE,
                "use_swiglu_ffn": request.param == "swiglu",
            },
            text_config={
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": DEPTH,
                "num_attention_heads": HEADS,
                "vocab_size": VOCABULARY,
            },
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = ("norm" in name and name.endswith("weight")) or "lambda1" in name
            parameter.copy_(1 + 0.3 * noise if around_one else 0.1 * noise)
        model.temperature.fill_(0.02)
    return model


@pytest.fixture(scope="module")
def ours(reference, tmp_path_factory):
    """Loads our towers from files in the PyTorch layout."""
    folder = tmp_path_factory.mktemp("weights")
    np.savez(folder / "vision.npz", **vision_file(reference))
    np.savez(folder / "text.npz", **text_file(reference))
    return load_backbone(
        "tips", vision=folder / "vision.npz", text=folder / "text.npz", num_heads=HEADS
    )


def renamed(module, names):
    arrays = {}
    for name, tensor in module.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        arrays[name] = tensor.numpy()
    return arrays


def fused(arrays, parts, whole):
    """Stacks the arrays named by `parts` (a pattern whose {} is each part) under one name."""
    pattern, names = parts
    first = pattern.format(names[0])
    for found in [name for name in arrays if first in name]:
        rows = [arrays.pop(found.replace(first, pattern.format(name))) for name in names]
        arrays[found.replace(first, whole)] = np.concatenate(rows)
    return arrays


def vision_file(model):
    arrays = renamed(model.vision_model, VISION_NAMES)
    arrays = fused(arrays, (".attention.{}_proj.", "qkv"), ".attn.qkv.")
    return fused(arrays, (".mlp.{}_proj.", ("gate", "up")), ".mlp.w12.")


def text_file(model):
    arrays = renamed(model.text_model, TEXT_NAMES)
    arrays = fused(arrays, (".self_attn.{}_proj.", "qkv"), ".attn.in_proj_")
    return {**arrays, "temperature": model.temperature.detach().numpy()}


def assert_close(actual, expected):
    expected = expected.numpy()
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE


@pytest.mark.parametrize(
    "size", [(IMAGE_SIZE, IMAGE_SIZE), (70, 112), (28, 28)], ids=["native", "larger", "smaller"]
)
def test_class_and_patch_tokens(reference, ours, size):
    images = np.random.default_rng(1).random((2, *size, 3), np.float32)
    with torch.no_grad():
        tokens = reference.vision_model(
            torch.from_numpy(images).permute(0, 3, 1, 2)
        ).last_hidden_state
    with jax.default_matmul_precision("highest"):
        features = ours.encode_image(ours.params, images)
    assert features.patches.shape == (2, 1, size[0] // 14, size[1] // 14, WIDTH)
    assert_close(features.global_tokens, tokens[:, :2])
    assert_close(features.patches.reshape(2, -1, WIDTH), tokens[:, 2:])


def test_text_embeddings(reference, ours):
    rng = np.random.default_rng(2)
    ids = rng.integers(1, VOCABULARY, (3, 12)).astype(np.int32)
    paddings = (np.arange(12) >= np.array([[12], [5], [1]])).astype(np.int32)
    ids[paddings == 1] = 0
    with torch.no_grad():
        expected = reference.text_model(
            torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(1 - paddings).long()
        ).pooler_output
    with jax.default_matmul_precision("highest"):
        actual = ours.encode_text(ours.params, ids, paddings)
    assert_close(actual, expected)


def test_temperature(reference, ours):
    assert ours.temperature == pytest.approx(reference.temperature.item())
