"""Parity of DINOv2 with `transformers` on random weights, from the files that it writes."""

import jax
import numpy as np
import pytest

from zsad_jax.backbones import dinov2, load_backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
HEADS, DEPTH = 4, 3


@pytest.fixture(scope="module", params=["plain", "swiglu", "registers", "registers_swiglu"])
def pair(request, tmp_path_factory):
    """Returns a tiny model with random parameters, none of them 0 or 1, and ours from its file."""
    options = {
        "hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "image_size": 56, "patch_size": 14, "use_swiglu_ffn": request.param.endswith("swiglu"),
    }  # fmt: skip
    if request.param.startswith("registers"):
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=4)
        model = transformers.Dinov2WithRegistersModel(config).eval()
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    rule = "size" if request.param in ("plain", "swiglu") else None
    path = folder / "model.safetensors"
    return model, load_backbone("dinov2", weights=path, num_heads=HEADS, position_rule=rule)


def assert_close(actual, expected):
    actual, expected = np.asarray(actual), expected.numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("size", [(56, 56), (70, 42), (84, 112), (28, 28)])
def test_class_and_patch_tokens(pair, size):
    model, ours = pair
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        found = model(pixels, output_hidden_states=True)
        h, w = (side // 14 for side in size)
        raw = [x[:, -h * w :] for x in found.hidden_states]
        patches = [model.layernorm(x) for x in raw]

    @jax.jit
    def encode(params, images):
        raw = ours.encode_image(params, images, cls_norm=False, patch_norm=False)
        return ours.encode_image(params, images, layers=(1, DEPTH)), raw

    with jax.default_matmul_precision("highest"):
        features, unnormed = encode(ours.params, images)
    assert_close(features.global_tokens[:, 0], found.pooler_output)
    assert_close(unnormed.global_tokens[:, 0], found.hidden_states[-1][:, 0])
    assert_close(unnormed.patches.reshape(2, h * w, -1), raw[-1])
    for index, layer in enumerate((1, DEPTH)):
        assert_close(features.patches[:, index].reshape(2, h * w, -1), patches[layer])


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (16, 37)])
@pytest.mark.parametrize("rule", ["offset", "size", "antialias"])
def test_position_rules(rule, size):
    """Compares the table of 518 pixels with PyTorch's, whose float32 coordinates differ by up to 2e-5."""
    grid = np.random.default_rng(0).normal(size=(1, 37, 37, 8)).astype(np.float32)
    options = {"size": size, "antialias": rule == "antialias"}
    if rule == "offset":
        options = {"scale_factor": tuple((side + 0.1) / 37 for side in size)}
    with torch.no_grad():
        table = torch.from_numpy(grid).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(table, mode="bicubic", **options)
    found = dinov2.resize_position_grid(grid, size, rule)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=2e-5)
