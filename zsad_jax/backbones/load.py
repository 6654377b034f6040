"""`load_backbone`: from a name or files to a `Backbone`."""

import dataclasses
import importlib
import inspect
from typing import Any, Literal

from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.family import DTYPES, Family, LoadOptions
from zsad_jax.backbones.registry import LINEAGES, RELEASES, WeightFiles, find_release, locate
from zsad_jax.backbones.transformer import AttentionForm
from zsad_jax.utils.config import checked
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.files import PathLike
from zsad_jax.utils.remote import fetch

MAX_IMAGE_SIZE = 8192
# Family -> its module, which is imported when a backbone of it is used.
FAMILIES = {name: f"zsad_jax.backbones.{name}" for name in ("tips", "clip", "dinov2", "siglip")}

# Options that only some families have, each with its type and description.
FAMILY_OPTIONS: dict[str, tuple[Any, str]] = {
    "lineage": (str | None, 'TIPS: "native" or "pytorch", the files of a released name.'),
    "gelu_approximate": (
        bool | None,
        'TIPS: True for "gelu_tanh", False for "gelu"; precedes `activation`.',
    ),
    "text_ln_eps": (float | None, "TIPS: epsilon of the LayerNorms of the text tower."),
    "posemb_stage": (
        tuple[int, ...] | None,
        "TIPS: sides of the grid that positions are resized to first, (32, 32).",
    ),
    "position_rule": (
        str | None,
        'DINOv2: how positions are resized, "offset", "size" or "antialias"; None: as in the release.',
    ),
}


@checked
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
    attention: AttentionForm = "auto",
    bit_depth: int = 16,
    resize: Literal["bilinear", "bicubic"] | None = None,
    **overrides: Any,
) -> Backbone:
    """Loads a frozen backbone, ready to encode.

    Args:
      name: a released checkpoint ("tips-l14-hr", "clip-vit-l14-336"; fetched on first use), an included one
        ("tips-nano", "clip-nano"), or a family ("tips", "clip", "dinov2", "siglip")
        together with files.
      weights: one file with all towers (not TIPS): npz, safetensors or PyTorch, in the names of the original
        release, of open_clip, timm or Hugging Face.
      vision, text: the two files of a family; their format follows from their keys.
      tokenizer: TIPS, SigLIP: the sentencepiece model; CLIP: the list of merges. Without one, only tokenizing
        is an error (the words of CLIP's learned prompts are known).
      image_size: side of the resized images, a multiple of the patch size; None: the checkpoint's own.
      dtype: "float32" or "bfloat16", of the matrix products; norms and softmax stay float32. On GPUs and TPUs
        bfloat16 is several times faster.
      num_heads: of both towers, for a family's files that do not show it.
      text_num_heads: of the text tower, where it differs.
      activation: TIPS: "gelu" or "gelu_tanh", of the vision tower, None: the lineage's; CLIP: "quick_gelu"
        (None: OpenAI's weights), "gelu" (LAION's) or "gelu_tanh", of both towers.
      attention: "auto", on each device the fastest form (on NVIDIA GPUs that of cuDNN, for bfloat16), or
        "plain", the same form everywhere.
      bit_depth: bits in use in images of 16 bits, 8 to 16; many cameras have 12.
      resize: how images are resized, "bilinear" or "bicubic"; None: as for the checkpoint.
      **overrides: options of a family (see `FAMILY_OPTIONS`), and sizes, which are checked against the arrays.

    Raises:
      UserError: unknown name or option, missing files, or arrays that do not fit.

    Example:
      >>> import numpy as np
      >>> backbone = load_backbone("clip-nano")
      >>> size = backbone.preprocess.image_size
      >>> images = backbone.preprocess.normalize(np.zeros((1, size, size, 3), np.uint8))
      >>> features = backbone.encode_image(backbone.params, images, layers=(2, 4))
      >>> features.global_tokens.shape, features.patches.shape
      ((1, 1, 128), (1, 2, 16, 16, 128))
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not a compute type. {suggest(str(dtype), DTYPES)}")
    # Before gigabytes are read; and below again, with the patch size that the arrays show.
    check_image_size(name, image_size)
    if not 8 <= bit_depth <= 16:
        raise UserError(
            f"bit_depth={bit_depth} must be between 8 and 16. Pass the number of bits in use."
        )
    _check_heads(name, num_heads, text_num_heads)
    paths = {"weights": weights, "vision": vision, "text": text, "tokenizer": tokenizer}
    located = locate_files(name, lineage=overrides.pop("lineage", None), **paths)
    options = LoadOptions(
        image_size, DTYPES[dtype], num_heads, text_num_heads, activation, attention, overrides
    )
    backbone = _find_family(name).load(name, located, RELEASES.get(name), options)
    check_image_size(name, backbone.preprocess.image_size, backbone.patch_size)
    resize = resize or backbone.preprocess.resize
    preprocess = dataclasses.replace(backbone.preprocess, bit_depth=bit_depth, resize=resize)
    tower = {"num_heads": num_heads, "activation": activation, "attention": attention}
    chosen = {"dtype": dtype, **tower, **overrides}
    return dataclasses.replace(backbone, preprocess=preprocess, options=chosen)


def option_names() -> tuple[str, ...]:
    """Returns the names of the options of `load_backbone`, those of families last."""
    parameters = inspect.signature(load_backbone).parameters.values()
    return (*(one.name for one in parameters if one.kind is one.KEYWORD_ONLY), *FAMILY_OPTIONS)


def locate_files(name: str, *, lineage: str | None = None, **options: Any) -> WeightFiles:
    """Returns the files that `load_backbone` reads for the same arguments: given, or a released name's.

    Files of a released name that are missing are fetched first.

    Raises:
      UserError: unknown name or lineage, or missing files.
    """
    family = _find_family(name)
    if lineage not in (None, *LINEAGES):
        raise UserError(f"lineage={lineage!r} is not a lineage. {suggest(str(lineage), LINEAGES)}")
    if lineage is not None and not family.lineages:
        raise UserError(f"lineage={lineage!r} is not an option of {name}. Omit it.")
    paths = {key: options.get(key) for key in WeightFiles._fields}
    given = WeightFiles(**{k: p if p is None else fetch(p, k) for k, p in paths.items()})
    if given.weights is not None and (given.vision is not None or given.text is not None):
        raise UserError(
            "weights=PATH cannot be combined with vision=PATH or text=PATH. Pass one for both, or one each."
        )
    if given.weights is not None or (given.vision is not None and given.text is not None):
        return given
    if name in FAMILIES:
        raise UserError(f"The family '{name}' needs its files. Pass {family.needs}.")
    found = locate(name, lineage or LINEAGES[0])
    # A given file, such as a tokenizer, takes the place of the release's own.
    return WeightFiles(*(ours or theirs for ours, theirs in zip(given, found, strict=True)))


def describe_backbone(name: str) -> Backbone:
    """Returns a released backbone without its weights: `params` are shapes, and only shapes can be encoded.

    Raises:
      UserError: the name is unknown.
    """
    return _find_family(name).describe(find_release(name))


def check_image_size(name: str, image_size: Any, patch_size: int | None = None) -> None:
    """Rejects a size that is not a multiple of the patch size.

    Args:
      name: of the backbone.
      image_size: side of the images in pixels; None: the backbone's own.
      patch_size: of the backbone; None: that of a released name.

    Raises:
      UserError: the size is not valid.
    """
    if image_size is None:
        return
    if not isinstance(image_size, int) or isinstance(image_size, bool):
        raise UserError(
            f"image_size={image_size!r} is not an integer. Pass the side of an image in pixels."
        )
    if not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"image_size={image_size} is out of range. Pass 1 to {MAX_IMAGE_SIZE} pixels."
        )
    patch = patch_size or (RELEASES[name].vision["patch_size"] if name in RELEASES else 1)
    if image_size % patch:
        below = image_size // patch * patch
        valid = f"{below} or {below + patch}" if below else str(patch)
        raise UserError(
            f"image_size={image_size} is not a multiple of {patch}, the patch size of {name}. Use {valid}."
        )


def _check_heads(name: str, num_heads: int | None, text_num_heads: int | None) -> None:
    """Rejects a number of heads that is not positive or differs from the released model's.

    The arrays would load but give wrong features.
    """
    release = RELEASES.get(name)
    for key, sizes, given in (
        ("num_heads", release and release.vision, num_heads),
        ("text_num_heads", release and release.text, text_num_heads),
    ):
        if given is not None and given < 1:
            raise UserError(f"{key}={given} is not a number of heads. Pass 1 or more, or omit it.")
        if sizes and given not in (None, sizes["num_heads"]):
            raise UserError(
                f"{key}={given} contradicts {name}, which has {sizes['num_heads']}. Omit it."
            )


def _find_family(name: str) -> Family:
    """Returns the family of a released checkpoint, or the family of this name."""
    key = name if name in FAMILIES else find_release(name).family
    family: Family = importlib.import_module(FAMILIES[key]).FAMILY
    return family
