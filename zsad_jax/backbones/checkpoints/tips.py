"""TIPS files: their lineage and sizes, and the PyTorch layout."""

from typing import Any

import numpy as np

from zsad_jax.backbones.checkpoints import torch_layout, vit
from zsad_jax.backbones.checkpoints.read import Arrays

_LAYOUTS = {
    "vision": torch_layout.Layout(
        vit.DINOV2_NAMES, "blocks.", vit.BLOCKS, torch_layout.DINOV2_PARTS
    ),
    "text": torch_layout.Layout(
        {
            "token_embedding.weight": "token_emb/emb_var",
            "ln_final.weight": "text_encoder_norm/scale",
            "ln_final.bias": "text_encoder_norm/bias",
            "temperature": "temperature_contrastive",  # as some files name it, too
        },
        "transformer.resblocks.",
        "transformer/encoderblock_",
        torch_layout.OPENAI_PARTS,
    ),
}


def is_pytorch(arrays: Arrays) -> bool:
    """Returns whether the keys are those of the PyTorch release (dots) and not of the native one (slashes)."""
    return not any("/" in name for name in arrays)


def from_arrays(
    arrays: Arrays, side: str, num_heads: int | None, source: str
) -> torch_layout.Native:
    """Returns a tower in native names and layouts, with LayerScale folded into dense layers.

    Arrays that are missing, unknown or misshapen are left for `fit_tree` to list.
    """
    layout = _LAYOUTS[side]
    if not is_pytorch(arrays):
        native = torch_layout.Native(arrays, source)
    elif side == "vision":
        native = vit.from_pytorch(arrays, layout, num_heads, source, num_registers=1)
    else:
        native = torch_layout.Native(
            layout.to_native(arrays, 1), source, layout.name_in_file, arrays
        )
        width = native.need("token_emb/emb_var", None, None).shape[1]
        heads = torch_layout.check_heads(num_heads or vit.default_heads(width), width, source)
        native = native._replace(arrays=layout.to_native(arrays, heads))
    temperature = native.arrays.get("temperature_contrastive", np.empty(0))
    if temperature.size != 1:
        return native
    # Published with the shape () or (1,).
    scalar = {"temperature_contrastive": temperature.reshape(())}
    return native._replace(arrays={**native.arrays, **scalar})


def read_sizes(native: torch_layout.Native, side: str) -> dict[str, Any]:
    """Returns the fields of `VisionSizes` or `TextSizes` that native arrays show."""
    if side == "vision":
        tokens = native.need(f"{vit.TOKENS}/cls", 1, None, None).shape[1]
        return {**vit.vision_sizes(native), "num_global_tokens": tokens}
    vocabulary, width = native.need("token_emb/emb_var", None, None).shape
    # So400m's text tower has 27 blocks, the others 12: the file says, not the name.
    blocks = native.block_sizes(_LAYOUTS[side].native_blocks)
    return {"vocabulary": vocabulary, "width": width, **blocks}
