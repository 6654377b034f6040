"""Tests that towers whose weights are split over devices give the same features and take less memory."""

import pathlib

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SCRIPT = """
import pathlib, sys
import jax, numpy as np
from zsad_jax import load_backbone
from zsad_jax.backbones.transformer import place
from zsad_jax.utils import sharding

folder = pathlib.Path(sys.argv[1])
swiglu = {"vision": folder / "tips/vision_swiglu_native.npz", "text": folder / "tips/text_native.npz"}
images = np.asarray(jax.random.normal(jax.random.key(0), (4, 238, 238, 3)))
ids, paddings = np.ones((4, 8), np.int32), np.zeros((4, 8), np.int32)

def share(params, *names):
    for name in names:
        params = params[name]
    return params.size / params.addressable_shards[0].data.size

def check_shares(params, feed_forward, heads, hidden):
    block = params["vision"].get("encoder", params["vision"])["transformer"]["encoderblock_1"]
    attention, dense = block["MultiHeadDotProductAttention_0"], block[feed_forward]
    *first, last = sorted(dense)
    for layer, expected in {"query": heads, "key": heads, "value": heads, "out": heads}.items():
        assert share(attention, layer, "kernel") == expected
        assert share(attention, layer, "bias") == (1 if layer == "out" else expected)
    for layer in first:
        assert share(dense, layer, "kernel") == share(dense, layer, "bias") == hidden
    assert (share(dense, last, "kernel"), share(dense, last, "bias")) == (hidden, 1)

for name, options, model, feed_forward in (
    ("tips", swiglu, 4, "FFNSwiGluFused_0"),
    ("clip", {"weights": folder / "clip/weights.npz", "num_heads": 4}, 2, "MlpBlock_0"),
):
    backbone = load_backbone(name, image_size=238, **options)

    @jax.jit
    def encode(params, images):
        features = backbone.encode_image(params, images, layers=(2, 3), vv_from=3)
        return jax.tree.leaves((features, backbone.encode_text(params, ids, paddings)))

    found = []
    for mesh in sharding.make_mesh(jax.devices()[:1]), sharding.make_mesh(model=model):
        params = place(backbone.params, mesh)
        features = encode(params, sharding.split_batch(images, mesh))
        assert all(sharding.MODEL not in str(array.sharding.spec) for array in features)
        found.append(jax.device_get(features))
    for one, many in zip(*found, strict=True):
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-5 * np.abs(one).max())
    check_shares(params, feed_forward, model, model)
    # Four heads cannot be shared by eight devices.
    check_shares(place(backbone.params, sharding.make_mesh(model=8)), feed_forward, 1, 8)
print("equal")
"""


def test_split_towers_give_the_same_features_with_less_memory(run_on_eight_devices):
    assert run_on_eight_devices(SCRIPT, GOLDENS) == "equal"
