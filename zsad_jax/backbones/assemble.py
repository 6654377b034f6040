"""What all families do alike when a `Backbone` is put together from its two towers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def encoders(vision: nn.Module, text: nn.Module, *, depth: int) -> dict[str, Callable[..., Any]]:
    """A backbone's pure functions over its two modules; `params` is the whole frozen tree in each.

    Args:
      vision: called with images and the options of `encode_image`.
      text: with methods `embed` and `encode`.
      depth: blocks of the vision tower.
    """

    def encode_image(
        params: Any,
        images: Any,
        *,
        layers: Sequence[int] | None = None,
        project: bool = True,
        vv_from: int | None = None,
        cls_norm: bool = True,
    ) -> VisionFeatures:
        if layers is not None and not (layers and all(1 <= layer <= depth for layer in layers)):
            raise UserError(
                f"layers={tuple(layers)}: name at least one of the vision tower's layers 1 to {depth}."
            )
        if vv_from is not None and not 1 <= vv_from <= depth:
            raise UserError(f"vv_from={vv_from}: the vision tower has the blocks 1 to {depth}.")
        return vision.apply(  # type: ignore[return-value]
            {"params": params["vision"]},
            images,
            layers=layers,
            project=project,
            vv_from=vv_from,
            cls_norm=cls_norm,
        )

    def embed_tokens(params: Any, token_ids: Any) -> Any:
        return text.apply({"params": params["text"]}, token_ids, method="embed")

    def encode_prompts(
        params: Any, embeddings: Any, paddings: Any, deep_prompts: Any = None
    ) -> Any:
        return text.apply(
            {"params": params["text"]}, embeddings, paddings, deep_prompts, method="encode"
        )

    def encode_text(params: Any, token_ids: Any, paddings: Any) -> Any:
        return encode_prompts(params, embed_tokens(params, token_ids), paddings)

    return {
        "encode_image": encode_image,
        "embed_tokens": embed_tokens,
        "encode_prompts": encode_prompts,
        "encode_text": encode_text,
    }


def apply_options(
    name: str,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    sizes: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> dict[str, Any]:
    """The family's options with the caller's; sizes that are given again are only checked.

    Args:
      name: of the backbone, for errors.
      options: the family's own, with their defaults.
      overrides: the caller's.
      sizes: what the arrays show of the vision and of the text tower.

    Raises:
      UserError: for an unknown option, or a size that the arrays contradict.
    """
    vision, text = sizes
    chosen = dict(options)
    for key, value in overrides.items():
        shown = vision.get(key.removeprefix("vision_"), text.get(key.removeprefix("text_")))
        if key in chosen:
            chosen[key] = value
        elif shown is None:
            known = ", ".join(sorted({*options, *vision, *text}))
            raise UserError(f"{key!r} is not an option of {name}; known are {known}.")
        elif shown != value:
            raise UserError(f"{key}={value} contradicts the weights of {name}, which have {shown}.")
    return chosen


def joint_digest(paths: Sequence[PathLike]) -> str:
    """SHA-256 over the digests of the weight files, so that results can name them."""
    return hashlib.sha256("".join(files.digest(path) for path in paths).encode()).hexdigest()
