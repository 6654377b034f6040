"""`load_backbone`: from a name or files to a `Backbone`."""

import dataclasses
from typing import Any

from zsad_jax.backbones.assemble import DTYPES
from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.registry import WeightFiles
from zsad_jax.backbones.sizes import SIZES
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

MAX_IMAGE_SIZE = 8192
FAMILIES = ("tips", "clip")


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
    bit_depth: int = 16,
    **overrides: Any,
) -> Backbone:
    """A frozen vision-language model, ready to encode.

    Args:
      name: a released checkpoint ("tips-l14-hr", "clip-vit-l14-336"; fetched on first use), a shipped one
        ("tips-nano", "clip-nano"), or the family "tips" or "clip" together with files.
      weights: one file with both towers: npz or safetensors, of OpenAI, open_clip or Hugging Face (no TIPS
        release has that form).
      vision, text: the two files of a family; formats are told apart by their keys.
      tokenizer: TIPS: the sentencepiece model; CLIP: the list of merges. Without one, only tokenising is an
        error (but the words that CLIP's learned prompts are built around are known).
      image_size: side of the square that images are resized to, a multiple of the patch size; None: the
        checkpoint's own.
      dtype: "float32" or "bfloat16", of the matrix products; norms and softmax stay float32.
      num_heads: for a family's files that do not show it; holds for both towers unless `text_num_heads` is
        given. Those of a named model are known.
      text_num_heads: the same for the text tower.
      activation: TIPS: "gelu" or "gelu_tanh", of the vision tower, None: the lineage's; CLIP: "quick_gelu"
        (None: OpenAI's weights), "gelu" (LAION's) or "gelu_tanh", of both towers.
      bit_depth: bits in use in images of 16 bits, 8 to 16; many cameras have 12.
      **overrides: for TIPS `lineage` ("native" or "pytorch": which files of a released name),
        `gelu_approximate`, `text_ln_eps`, `posemb_stage`; any size that the arrays show is checked, not set.

    Raises:
      UserError: unknown name or option, missing files, or arrays that do not fit.
    """
    if dtype not in DTYPES:
        raise UserError(
            f"dtype={dtype!r} is not a compute type; choose one of {', '.join(DTYPES)}."
        )
    check_image_size(name, image_size)
    if not isinstance(bit_depth, int) or not 8 <= bit_depth <= 16:
        raise UserError(f"bit_depth={bit_depth!r} must be a whole number from 8 to 16.")
    _check_heads(name, num_heads, text_num_heads)
    lineage = overrides.pop("lineage", None)
    _check_lineage(name, lineage)
    located = locate_files(
        name, weights=weights, vision=vision, text=text, tokenizer=tokenizer, lineage=lineage
    )
    options: dict[str, Any] = {
        "image_size": image_size,
        "dtype": DTYPES[dtype],
        "num_heads": num_heads,
        "text_num_heads": text_num_heads,
        "activation": activation,
        "overrides": overrides,
    }
    if _is_clip(name):
        from zsad_jax.backbones.load_clip import load_clip

        backbone = load_clip(name, located, **options)
    else:
        from zsad_jax.backbones.load_tips import load_tips

        backbone = load_tips(name, located, **options)
    check_image_size(name, backbone.preprocess.image_size, backbone.patch_size)
    preprocess = dataclasses.replace(backbone.preprocess, bit_depth=bit_depth)
    return dataclasses.replace(backbone, preprocess=preprocess)


def locate_files(
    name: str,
    *,
    weights: PathLike | None = None,
    vision: PathLike | None = None,
    text: PathLike | None = None,
    tokenizer: PathLike | None = None,
    lineage: str | None = None,
    **_: Any,
) -> WeightFiles:
    """The files that `load_backbone` reads for the same arguments: given, or a released name's.

    What a released name lacks is fetched first.

    Raises:
      UserError: unknown name or lineage, or missing files.
    """
    if weights is not None and (vision is not None or text is not None):
        raise UserError("Pass weights=PATH, or vision=PATH and text=PATH, not both.")
    given = WeightFiles(weights, vision, text, tokenizer)
    if weights is not None or (vision is not None and text is not None):
        return given
    if name in FAMILIES:
        wanted = "vision=PATH and text=PATH" + (", or weights=PATH" if _is_clip(name) else "")
        raise UserError(f"The family '{name}' needs its files: pass {wanted}.")
    from zsad_jax.backbones import registry

    found = registry.locate(name, lineage or "native")
    return WeightFiles(*(ours or theirs for ours, theirs in zip(given, found, strict=True)))


def describe_backbone(name: str) -> Backbone:
    """A released backbone without its weights: `params` are shapes, and nothing can be encoded but shapes.

    Args:
      name: a released checkpoint ("clip-vit-l14-336") or a shipped one.

    Raises:
      UserError: for an unknown name.
    """
    from zsad_jax.backbones import clip, registry, tips

    if name not in registry.SIZES:
        raise UserError(
            f"{name!r} is not a released checkpoint; known are {', '.join(registry.SIZES)}."
        )
    of_vision, of_text = registry.SIZES[name]
    if _is_clip(name):
        from zsad_jax.backbones.load_clip import make_clip

        clip_sizes = clip.VisionSizes(**of_vision), clip.TextSizes(**of_text)
        trees = clip.vision_tree(clip_sizes[0]), clip.text_tree(clip_sizes[1])
        return make_clip(name, dict(zip(("vision", "text"), trees, strict=True)), clip_sizes)
    from zsad_jax.backbones.load_tips import make_tips

    sizes = tips.VisionSizes(**of_vision), tips.TextSizes(**of_text)
    params = {"vision": tips.vision_tree(sizes[0]), "text": tips.text_tree(sizes[1])}
    return make_tips(name, params, sizes)


def check_image_size(name: str, image_size: Any, patch_size: int | None = None) -> None:
    """Rejects a size that is not a multiple of the patch size, by default that of a released name."""
    if image_size is None:
        return
    if not isinstance(image_size, int) or isinstance(image_size, bool):
        raise UserError(f"image_size={image_size!r} must be a whole number of pixels.")
    if not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(f"image_size={image_size} must be between 1 and {MAX_IMAGE_SIZE} pixels.")
    patch = patch_size or (SIZES[name][0]["patch_size"] if name in SIZES else 1)
    if image_size % patch:
        below = image_size // patch * patch
        valid = f"{below} or {below + patch}" if below else str(patch)
        raise UserError(
            f"image_size={image_size} is not a multiple of {patch}, the patch size of {name}; give {valid}."
        )


def _check_heads(name: str, num_heads: int | None, text_num_heads: int | None) -> None:
    """Refuses other attention heads than a released model has: its arrays would load and be wrong."""
    for sizes, key, given in zip(
        SIZES.get(name, ()),
        ("num_heads", "text_num_heads"),
        (num_heads, text_num_heads),
        strict=False,
    ):
        if given not in (None, sizes["num_heads"]):
            raise UserError(
                f"{key}={given} contradicts {name}, which has {sizes['num_heads']}; leave it out."
            )


def _check_lineage(name: str, lineage: Any) -> None:
    if lineage not in (None, "native", "pytorch"):
        raise UserError(f"lineage={lineage!r} is unknown; choose native or pytorch.")
    if lineage is not None and _is_clip(name):
        raise UserError(f"lineage={lineage!r} is for TIPS alone; leave it out for {name}.")


def _is_clip(name: str) -> bool:
    return name.split("-")[0] == "clip"
