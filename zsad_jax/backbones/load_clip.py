"""CLIP from one file with both towers, or one file each, to a `Backbone`."""

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.backbones import clip
from zsad_jax.backbones.assemble import apply_options, encoders, joint_digest
from zsad_jax.backbones.base import Backbone, Params
from zsad_jax.backbones.checkpoints import clip as clip_checkpoints
from zsad_jax.backbones.checkpoints.read import fit_tree, read_arrays
from zsad_jax.backbones.registry import WeightFiles
from zsad_jax.backbones.sizes import SIZES
from zsad_jax.backbones.tokenizers import tokenize_bpe
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")


def load_clip(
    name: str,
    located: WeightFiles,
    *,
    image_size: int | None,
    dtype: Any,
    num_heads: int | None,
    text_num_heads: int | None,
    activation: str | None,
    overrides: Mapping[str, Any],
) -> Backbone:
    """Reads both towers; the arguments are those of `load_backbone`.

    No format says which GELU a model was trained with: None is OpenAI's QuickGELU, and a model trained
    otherwise (LAION's) needs activation="gelu".

    Raises:
      UserError: for an unknown option, or arrays that do not fit.
    """
    if activation not in (None, *ACTIVATIONS):
        raise UserError(
            f"activation={activation!r} is not known for CLIP; choose one of {', '.join(ACTIVATIONS)}."
        )
    paths = [path for path in (located.weights, located.vision, located.text) if path is not None]
    arrays = {key: array for path in paths for key, array in read_arrays(path).items()}
    source = f"The file {paths[0]}" if len(paths) == 1 else f"The files {paths[0]} and {paths[1]}"
    known = [sizes["num_heads"] for sizes in SIZES.get(name, ())] or [None, None]
    vision, text = clip_checkpoints.from_arrays(
        arrays,
        num_heads=num_heads or known[0],
        text_num_heads=text_num_heads or known[1] or num_heads,
        source=source,
    )
    chosen = {"activation": activation or "quick_gelu", "dtype": dtype}
    sizes = _read_sizes(name, (vision, text), overrides, chosen, source)
    tree = fit_tree(
        {"vision": vision, "text": text},
        {"vision": clip.vision_tree(sizes[0]), "text": clip.text_tree(sizes[1])},
        source=source,
        name_in_file=clip_checkpoints.names_in_file(arrays),
    )
    params = jax.tree.map(jnp.asarray, tree)
    return make_clip(
        name,
        params,
        sizes,
        temperature=math.exp(-float(params["text"]["logit_scale"])),
        tokenizer=located.tokenizer,
        image_size=image_size,
        digest=joint_digest(paths),
    )


def _read_sizes(
    name: str,
    towers: tuple[Params, Params],
    overrides: Mapping[str, Any],
    chosen: Mapping[str, Any],
    source: str,
) -> tuple[clip.VisionSizes, clip.TextSizes]:
    """What the arrays of both towers show, checked against the caller's options, with what they do not."""
    vision, text = (
        clip_checkpoints.read_sizes_vision(towers[0], source),
        clip_checkpoints.read_sizes_text(towers[1], source),
    )
    apply_options(name, {}, overrides, (vision, text))
    sizes = clip.VisionSizes(**vision, **chosen), clip.TextSizes(**text, **chosen)
    if sizes[0].embed_dim != sizes[1].embed_dim:
        raise UserError(
            f"{source} project images to {sizes[0].embed_dim} and texts to {sizes[1].embed_dim} numbers:"
            " the two towers are not of one model."
        )
    return sizes


def make_clip(
    name: str,
    params: Params,
    sizes: tuple[clip.VisionSizes, clip.TextSizes],
    *,
    temperature: float = 1.0,
    tokenizer: PathLike | None = None,
    image_size: int | None = None,
    digest: str = "",
) -> Backbone:
    """A CLIP of these sizes over ready parameters (arrays, or their shapes alone)."""
    vision, text = sizes
    native = vision.grid * vision.patch_size
    return Backbone(
        name=name,
        params=params,
        preprocess=Preprocess(
            image_size=image_size or native,
            resize="bicubic",
            mean=clip.MEAN,
            std=clip.STD,
            rgb_first=False,
        ),
        temperature=temperature,
        patch_size=vision.patch_size,
        embed_dim=vision.embed_dim,
        num_global_tokens=1,
        num_start_tokens=clip.NUM_START_TOKENS,
        vision_width=vision.width,
        vision_depth=vision.depth,
        text_width=text.width,
        text_depth=text.depth,
        text_length=text.length,
        digest=digest,
        demonstration=name.endswith("-nano"),
        tokenize=functools.partial(
            tokenize_bpe,
            path=None if tokenizer is None else os.fspath(tokenizer),
            length=text.length,
            vocabulary=text.vocabulary,
        ),
        **encoders(clip.VisionEncoder(vision), clip.TextEncoder(text), depth=vision.depth),
    )
