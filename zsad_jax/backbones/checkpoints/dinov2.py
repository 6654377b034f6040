"""DINOv2 files: the names of the original release, of timm and of Hugging Face."""

import numpy as np

from zsad_jax.backbones.checkpoints import vit
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.checkpoints.torch_layout import (
    ATTENTION,
    DINOV2_PARTS,
    QUERY_KEY_VALUE,
    Layout,
    Native,
    below,
)

_DENSE = ("query", "key", "value", "out")
_GATED, _LAST = DINOV2_PARTS["mlp.w12"], DINOV2_PARTS["mlp.w3"]

_REGISTERS = {"reg_token": f"{vit.TOKENS}/registers"}  # in timm
_ORIGINAL = Layout(vit.DINOV2_NAMES | _REGISTERS, "blocks.", vit.BLOCKS, DINOV2_PARTS)
# timm's SwiGLU has the names of an MLP.
_TIMM_GATED = _ORIGINAL._replace(parts={**DINOV2_PARTS, "mlp.fc1": _GATED, "mlp.fc2": _LAST})
_HUGGING_FACE = Layout(
    {
        "embeddings.patch_embeddings.projection.weight": f"{vit.TOKENS}/embedding/kernel",
        "embeddings.patch_embeddings.projection.bias": f"{vit.TOKENS}/embedding/bias",
        "embeddings.position_embeddings": f"{vit.TOKENS}/posembed_input",
        "embeddings.cls_token": f"{vit.TOKENS}/cls",
        "embeddings.register_tokens": f"{vit.TOKENS}/registers",
        "embeddings.mask_token": "mask_token",
        "layernorm.weight": f"{vit.NORM}/scale",
        "layernorm.bias": f"{vit.NORM}/bias",
    },
    "encoder.layer.",
    vit.BLOCKS,
    {
        **{name: DINOV2_PARTS[name] for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
        # First the names in memory since transformers 5, which its files do not have.
        **{f"attention.{one[0]}_proj": (f"{ATTENTION}/{one}",) for one in _DENSE},
        "mlp.gate_proj": _GATED[:1],
        "mlp.up_proj": _GATED[1:],
        "mlp.down_proj": _LAST,
        "attention.attention.query": QUERY_KEY_VALUE[:1],
        "attention.attention.key": QUERY_KEY_VALUE[1:2],
        "attention.attention.value": QUERY_KEY_VALUE[2:],
        "attention.output.dense": (f"{ATTENTION}/out",),
        "mlp.weights_in": _GATED,
        "mlp.weights_out": _LAST,
    },
    ("layer_scale1.lambda1", "layer_scale2.lambda1"),
)


def from_arrays(arrays: Arrays, num_heads: int | None, source: str) -> Native:
    """Returns native arrays, see `vit.from_pytorch`."""
    for prefix in ("teacher.", "backbone."):  # of training
        arrays = below(arrays, prefix) or arrays
    # With registers, timm adds the position of the class token to the token, as is done here.
    merged = "reg_token" in arrays
    return vit.from_pytorch(arrays, _layout(arrays), num_heads, source, class_position=not merged)


def _layout(arrays: Arrays) -> Layout:
    if any(name.startswith("embeddings.") for name in arrays):
        return _HUGGING_FACE
    first, second = (arrays.get(f"blocks.0.mlp.fc{i}.weight", np.empty(0)).shape for i in (1, 2))
    return _TIMM_GATED if first[:1] == tuple(2 * n for n in second[1:]) else _ORIGINAL
