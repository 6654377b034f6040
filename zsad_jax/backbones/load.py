"""`load_backbone`: from a name or files to a `Backbone`."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from zsad_jax import files
from zsad_jax.backbones import tips, tips_checkpoints, tokenizers
from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.checkpoints import fit_tree, read_arrays
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.errors import UserError

PathLike = str | os.PathLike[str]
MAX_IMAGE_SIZE = 8192
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load_backbone(
    name: str,
    *,
    weights: PathLike | None = None,
    vision: PathLike | None = None,
    text: PathLike | None = None,
    tokenizer: PathLike | None = None,
    image_size: int | None = None,
    dtype: str = "float32",
    num_heads: int | None = None,
    text_num_heads: int | None = None,
    activation: str | None = None,
    **overrides: Any,
) -> Backbone:
    """A frozen vision-language model, ready to encode.

    Args:
      name: a released checkpoint ("tips-l14-hr", fetched on first use), a shipped one ("tips-nano"), or the
        family "tips" together with files.
      weights: one file with both towers (no TIPS release has that form).
      vision, text: the two files of a family, native or PyTorch npz, told apart by their keys.
      tokenizer: the sentencepiece model; without one, only tokenising is an error.
      image_size: side of the square that images are resized to; None: the checkpoint's own.
      dtype: "float32" or "bfloat16", of the matrix products; norms and softmax stay float32.
      num_heads: for files that do not show it; holds for both towers unless `text_num_heads` is given.
      text_num_heads: the same for the text tower.
      activation: "gelu" or "gelu_tanh", of the vision tower; None: the lineage's.
      **overrides: `lineage` ("native" or "pytorch": which files of a released name), `gelu_approximate`,
        `text_ln_eps`, `posemb_stage`, or any size that the arrays show (checked, not set).

    Raises:
      UserError: unknown name or option, missing files, or arrays that do not fit.
    """
    if dtype not in DTYPES:
        raise UserError(
            f"dtype={dtype!r} is not a compute type; choose one of {', '.join(DTYPES)}."
        )
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(f"image_size={image_size} must be between 1 and {MAX_IMAGE_SIZE} pixels.")
    if weights is not None:
        raise UserError(
            "TIPS is published as two files; pass vision=PATH and text=PATH instead of weights=PATH."
        )
    if activation is not None:
        if activation not in ("gelu", "gelu_tanh"):
            raise UserError(
                f"activation={activation!r} is not known for TIPS; choose gelu or gelu_tanh."
            )
        overrides.setdefault("gelu_approximate", activation == "gelu_tanh")
    lineage = overrides.pop("lineage", None)
    if lineage not in (None, "native", "pytorch"):
        raise UserError(f"lineage={lineage!r} is unknown; choose native or pytorch.")
    located = locate_files(name, vision=vision, text=text, tokenizer=tokenizer, lineage=lineage)
    heads = (num_heads, text_num_heads or num_heads)
    towers = [
        _Tower.read(path, heads=count, side=side)
        for path, count, side in zip(located[:2], heads, ("vision", "text"), strict=True)
    ]
    sizes = _apply_overrides(name, towers, overrides, DTYPES[dtype])
    return _assemble(name, towers, sizes, located[2], image_size)


def locate_files(
    name: str,
    *,
    vision: PathLike | None = None,
    text: PathLike | None = None,
    tokenizer: PathLike | None = None,
    lineage: str | None = None,
    **_: Any,
) -> tuple[PathLike, PathLike, PathLike | None]:
    """The files that `load_backbone` reads for the same arguments: given, or a released name's.

    Returns:
      The vision tower, the text tower and the tokenizer; what a released name lacks is fetched first.

    Raises:
      UserError: unknown name or lineage, or missing files.
    """
    if vision is not None and text is not None:
        return vision, text, tokenizer
    if name == "tips":
        raise UserError("The family 'tips' needs its files: pass vision=PATH and text=PATH.")
    from zsad_jax.backbones import released

    found = released.locate(name, lineage or "native")
    return vision or found.vision, text or found.text, tokenizer or found.tokenizer


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


def _apply_overrides(
    name: str, towers: Sequence[_Tower], overrides: dict[str, Any], dtype: Any
) -> tuple[tips.VisionSizes, tips.TextSizes]:
    """Sizes with the lineage's defaults and the caller's options; sizes given again are only checked."""
    vision, text = towers
    options: dict[str, Any] = {
        "gelu_approximate": not vision.pytorch,
        "posemb_stage": None,
        "text_ln_eps": 1e-5 if text.pytorch else 1e-6,
    }
    for key, value in overrides.items():
        shown = vision.sizes.get(
            key.removeprefix("vision_"), text.sizes.get(key.removeprefix("text_"))
        )
        if key in options:
            options[key] = value
        elif shown is None:
            known = sorted({*options, *vision.sizes, *text.sizes, "lineage"})
            raise UserError(f"{key!r} is not an option of TIPS; known are {', '.join(known)}.")
        elif shown != value:
            raise UserError(f"{key}={value} contradicts the weights of {name}, which have {shown}.")
    if not isinstance(options["gelu_approximate"], bool):
        raise UserError(f"gelu_approximate={options['gelu_approximate']!r} must be True or False.")
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


def _assemble(
    name: str,
    towers: Sequence[_Tower],
    sizes: tuple[tips.VisionSizes, tips.TextSizes],
    tokenizer: PathLike | None,
    image_size: int | None,
) -> Backbone:
    if sizes[0].width != sizes[1].width:
        raise UserError(
            f"{towers[0].path} is {sizes[0].width} wide and {towers[1].path} {sizes[1].width}:"
            " the two files are not of one model."
        )
    params = {side: tower.params for side, tower in zip(("vision", "text"), towers, strict=True)}
    return Backbone(
        name=name,
        params=params,
        preprocess=Preprocess(image_size=image_size or _native_image_size(name, sizes[0])),
        temperature=float(params["text"]["temperature_contrastive"]),
        patch_size=sizes[0].patch_size,
        embed_dim=sizes[0].width,
        num_global_tokens=sizes[0].num_global_tokens,
        vision_width=sizes[0].width,
        vision_depth=sizes[0].depth,
        text_width=sizes[1].width,
        text_depth=sizes[1].depth,
        text_length=tips.TEXT_LENGTH,
        digest=_joint_digest([tower.path for tower in towers]),
        demonstration=name.endswith("-nano"),
        **_functions(
            tips.VisionEncoder(sizes[0]), tips.TextEncoder(sizes[1]), tokenizer, sizes[0].depth
        ),
    )


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


def _functions(
    vision: tips.VisionEncoder, text: tips.TextEncoder, tokenizer: PathLike | None, depth: int
) -> dict[str, Callable[..., Any]]:
    """The backbone's pure functions; `params` is the whole frozen tree in each."""

    def encode_image(
        params: Any, images: Any, *, layers: Sequence[int] | None = None, project: bool = True
    ) -> VisionFeatures:
        if layers is not None and not (layers and all(1 <= layer <= depth for layer in layers)):
            raise UserError(
                f"layers={tuple(layers)}: name at least one of the vision tower's layers 1 to {depth}."
            )
        variables = {"params": params["vision"]}
        return vision.apply(variables, images, layers=layers, project=project)  # type: ignore[return-value]

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

    path = None if tokenizer is None else os.fspath(tokenizer)
    return {
        "encode_image": encode_image,
        "embed_tokens": embed_tokens,
        "encode_prompts": encode_prompts,
        "encode_text": encode_text,
        "tokenize": functools.partial(
            tokenizers.tokenize_sentencepiece,
            path=path,
            length=tips.TEXT_LENGTH,
            vocabulary=text.sizes.vocabulary,
        ),
    }


def _joint_digest(paths: Sequence[PathLike]) -> str:
    return hashlib.sha256("".join(files.digest(path) for path in paths).encode()).hexdigest()
