"""TIPS from its two files to a `Backbone`."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from zsad_jax.backbones import tips
from zsad_jax.backbones.assemble import apply_options, encoders, joint_digest
from zsad_jax.backbones.base import Backbone, Params
from zsad_jax.backbones.checkpoints import tips as tips_checkpoints
from zsad_jax.backbones.checkpoints.read import fit_tree, read_arrays
from zsad_jax.backbones.registry import WeightFiles
from zsad_jax.backbones.tokenizers import tokenize_sentencepiece
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

ACTIVATIONS = ("gelu", "gelu_tanh")


def load_tips(
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

    Raises:
      UserError: for an unknown option, or arrays that do not fit.
    """
    if located.vision is None or located.text is None:
        raise UserError(
            "TIPS is published as two files; pass vision=PATH and text=PATH instead of weights=PATH."
        )
    if activation is not None:
        if activation not in ACTIVATIONS:
            raise UserError(
                f"activation={activation!r} is not known for TIPS; choose gelu or gelu_tanh."
            )
        overrides = {"gelu_approximate": activation == "gelu_tanh", **overrides}
    towers = [
        _Tower.read(path, heads=heads, side=side)
        for path, heads, side in (
            (located.vision, num_heads, "vision"),
            (located.text, text_num_heads or num_heads, "text"),
        )
    ]
    sizes = _read_sizes(name, towers, overrides, dtype)
    if sizes[0].width != sizes[1].width:
        raise UserError(
            f"{towers[0].path} is {sizes[0].width} wide and {towers[1].path} {sizes[1].width}:"
            " the two files are not of one model."
        )
    params = {side: tower.params for side, tower in zip(("vision", "text"), towers, strict=True)}
    return make_tips(
        name,
        params,
        sizes,
        temperature=float(params["text"]["temperature_contrastive"]),
        tokenizer=located.tokenizer,
        image_size=image_size,
        digest=joint_digest([tower.path for tower in towers]),
    )


def make_tips(
    name: str,
    params: Params,
    sizes: tuple[tips.VisionSizes, tips.TextSizes],
    *,
    temperature: float = 1.0,
    tokenizer: PathLike | None = None,
    image_size: int | None = None,
    digest: str = "",
) -> Backbone:
    """A TIPS of these sizes over ready parameters (arrays, or their shapes alone)."""
    vision, text = sizes
    return Backbone(
        name=name,
        params=params,
        preprocess=Preprocess(image_size=image_size or _native_image_size(name, vision)),
        temperature=temperature,
        patch_size=vision.patch_size,
        embed_dim=vision.width,
        num_global_tokens=vision.num_global_tokens,
        num_start_tokens=0,
        vision_width=vision.width,
        vision_depth=vision.depth,
        text_width=text.width,
        text_depth=text.depth,
        text_length=tips.TEXT_LENGTH,
        digest=digest,
        demonstration=name.endswith("-nano"),
        tokenize=functools.partial(
            tokenize_sentencepiece,
            path=None if tokenizer is None else os.fspath(tokenizer),
            length=tips.TEXT_LENGTH,
            vocabulary=text.vocabulary,
        ),
        **encoders(tips.VisionEncoder(vision), tips.TextEncoder(text), depth=vision.depth),
    )


@dataclasses.dataclass(frozen=True)
class _Tower:
    """One file's parameters as a module's tree on the device, and the sizes they show."""

    path: PathLike
    params: Params
    sizes: dict[str, Any]
    pytorch: bool

    @classmethod
    def read(cls, path: PathLike, *, heads: int | None, side: str) -> "_Tower":
        arrays: Mapping[str, np.ndarray] = read_arrays(path)
        source = f"The {side} file {path}"
        pytorch = tips_checkpoints.is_pytorch(arrays)
        if pytorch:
            convert = getattr(tips_checkpoints, f"{side}_from_pytorch")
            arrays = convert(arrays, num_heads=heads, source=source)
        sizes = getattr(tips_checkpoints, f"read_sizes_{side}")(arrays, source)
        if heads is not None and sizes["num_heads"] != heads:
            raise UserError(
                f"{source} has {sizes['num_heads']} attention heads, not the {heads} that were asked for;"
                " leave num_heads out."
            )
        expected = (
            tips.vision_tree(tips.VisionSizes(**sizes))
            if side == "vision"
            else tips.text_tree(tips.TextSizes(**sizes))
        )
        tree = fit_tree(_scalar_temperature(arrays), expected, source=str(path))
        # Put on the device here, so that the host's copy is gone before the other file is read.
        return cls(path, jax.tree.map(jnp.asarray, tree), sizes, pytorch)


def _read_sizes(
    name: str, towers: Sequence[_Tower], overrides: Mapping[str, Any], dtype: Any
) -> tuple[tips.VisionSizes, tips.TextSizes]:
    """Sizes with the lineage's defaults and the caller's options."""
    vision, text = towers
    defaults = {
        "lineage": None,  # chose the files already; named here among the options of TIPS
        "gelu_approximate": not vision.pytorch,
        "posemb_stage": None,
        "text_ln_eps": 1e-5 if text.pytorch else 1e-6,
    }
    options = apply_options(name, defaults, overrides, (vision.sizes, text.sizes))
    if not isinstance(options["gelu_approximate"], bool):
        raise UserError(f"gelu_approximate={options['gelu_approximate']!r} must be True or False.")
    del options["lineage"]
    text_ln_eps = options.pop("text_ln_eps")
    if not isinstance(text_ln_eps, float) or not 0 < text_ln_eps < 1:
        raise UserError(f"text_ln_eps={text_ln_eps!r} must be a small positive number, as 1e-5.")
    stage = _read_stage(name, options.pop("posemb_stage"))
    return (
        tips.VisionSizes(**vision.sizes, **options, posemb_stage=stage, dtype=dtype),
        tips.TextSizes(**text.sizes, text_ln_eps=text_ln_eps, dtype=dtype),
    )


def _read_stage(name: str, stage: Any) -> tuple[int, int] | None:
    """The checked `posemb_stage`; it concerns v1's high-resolution weights (or files) alone."""
    if stage in (None, (), (None,)):
        return None
    if not (isinstance(stage, tuple | list) and len(stage) == 2 and min(stage) > 0):
        raise UserError(f"posemb_stage={stage!r} must be None or two numbers, as (32, 32).")
    if name != "tips" and not _is_v1_high_resolution(name):
        logging.info("posemb_stage is for TIPS v1 high-resolution weights; %s goes without.", name)
        return None
    return int(stage[0]), int(stage[1])


def _is_v1_high_resolution(name: str) -> bool:
    return name.startswith("tips-") and name.endswith("-hr")


def _native_image_size(name: str, sizes: tips.VisionSizes) -> int:
    """The side that a checkpoint was trained at; v1's native files hold the low-resolution grid."""
    if name == "tips-nano":
        return 252
    return 448 if _is_v1_high_resolution(name) else sizes.grid * sizes.patch_size


def _scalar_temperature(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The temperature as a scalar; published files have it as () or (1,)."""
    name = "temperature_contrastive"
    return (
        {**arrays, name: arrays[name].reshape(())}
        if name in arrays and arrays[name].size == 1
        else dict(arrays)
    )
