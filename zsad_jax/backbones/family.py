"""The contract of a family of backbones, and the parts that all families share."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Unpack, get_args

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import (
    Adapters,
    AnyArray,
    Backbone,
    EncodeImageFn,
    Params,
    TextOptions,
    TextSide,
    TokenizeFn,
    Tokens,
    VisionFeatures,
    VisionOptions,
    VVPath,
)
from zsad_jax.backbones.registry import Release, WeightFiles
from zsad_jax.backbones.tokenizers import TokenizeWithFn
from zsad_jax.backbones.transformer import AttentionForm, TextTower, VisionTower, tree_of
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.files import PathLike

DTYPES: dict[str, DTypeLike] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class LoadOptions(NamedTuple):
    """Arguments of `load_backbone` that a family interprets.

    Attributes:
      dtype: of the matrix products.
      overrides: options of the family by name, and sizes that are only checked.
    """

    image_size: int | None = None
    dtype: DTypeLike = jnp.float32
    num_heads: int | None = None
    text_num_heads: int | None = None
    activation: str | None = None
    attention: AttentionForm = "auto"
    overrides: Mapping[str, Any] = {}


class LoadFn(Protocol):
    """A function that makes a backbone of weight files."""

    def __call__(
        self, name: str, located: WeightFiles, release: Release | None, options: LoadOptions
    ) -> Backbone:
        """Reads the files.

        Args:
          name: a released checkpoint, or the family.
          located: the files.
          release: the record of a released checkpoint; None: files of the user's own.
          options: the caller's.

        Raises:
          UserError: for an unknown option, or arrays that do not fit.
        """
        ...


class Family(NamedTuple):
    """A family of backbones; its module defines one as `FAMILY`.

    Attributes:
      needs: the arguments of `load_backbone` that give its files, in words.
      towers: the module of the vision side and, where there is one, of the text side, each with a function from
        the fields of a record to its sizes.
      tokenize: a function of `tokenizers`, with a text side.
      preprocess: from the image size to the field of `Backbone`.
      forms: from the towers to those of all forms (see `Backbone.in_form`), the default first.
      lineages: whether released names have several lineages of files.
    """

    name: str
    load: LoadFn
    needs: str
    towers: Sequence[tuple[Callable[[Any], Any], Callable[..., Any]]] = ()
    tokenize: TokenizeWithFn | None = None
    preprocess: Callable[..., Preprocess] = Preprocess
    forms: Callable[..., Mapping[str, Sequence[Any]]] = lambda *towers: {"": towers}
    lineages: bool = False

    def describe(self, release: Release) -> Backbone:
        """Returns the backbone of a record, whose `params` are shapes."""
        records = release.vision, release.text or {}
        towers = [of(sizes(**one)) for (of, sizes), one in zip(self.towers, records, strict=False)]
        return self.assemble(release.name, WeightFiles(), release, LoadOptions(), towers)

    def assemble(
        self,
        name: str,
        located: WeightFiles,
        release: Release | None,
        options: LoadOptions,
        towers: Sequence[Any],
        params: Params | None = None,
        temperature: float = 1.0,
        logit_bias: float | None = None,
    ) -> Backbone:
        """Returns the backbone of a vision tower and, where there is one, a text tower.

        Args:
          name, located, release, options: as for `LoadFn`.
          towers: the modules.
          params: None: their shapes.
          temperature, logit_bias: fields of `Backbone`.
        """
        # With another temperature, all scores would be inverted or not finite.
        if not 0 < temperature < float("inf"):
            raise UserError(
                f"The weights of {name} have the temperature {temperature:g}; expected a positive number. Fetch"
                " the file again."
            )
        sizes = towers[0].sizes
        # A missing tokenizer is reported where a text is tokenized: images can be encoded without it.
        path = None if located.tokenizer is None else pathlib.Path(located.tokenizer)

        def functions(vision: VisionTower, *text: TextTower) -> dict[str, Any]:
            encode = image_encoder(vision, depth=sizes.depth, patch_size=sizes.patch_size)
            if not (text and self.tokenize):
                return {"encode_image": encode}
            length, vocabulary = text[0].sizes.length, text[0].sizes.vocabulary
            words = functools.partial(
                self.tokenize, path=path, length=length, vocabulary=vocabulary
            )
            return {"encode_image": encode, "text": text_side(text[0], words)}

        forms = {form: functions(*modules) for form, modules in self.forms(*towers).items()}
        form = next(iter(forms))
        weights = [file for file in located[:3] if file is not None]
        trained_on = release.image_size if release else sizes.grid * sizes.patch_size
        return Backbone(
            name=name,
            family=self.name,
            params=params or trees_of(towers),
            preprocess=self.preprocess(image_size=options.image_size or trained_on),
            temperature=temperature,
            logit_bias=logit_bias,
            patch_size=sizes.patch_size,
            embed_dim=sizes.embed_dim or sizes.width,
            num_global_tokens=sizes.num_global_tokens,
            vision_width=sizes.width,
            vision_depth=sizes.depth,
            digest=joint_digest(weights) if weights else "",
            tokenizer_digest=files.digest(path) if path and path.is_file() else None,
            demonstration=release is not None and release.demo,
            form=form,
            forms=forms,
            **forms[form],
        )


def trees_of(towers: Sequence[VisionTower | TextTower]) -> Params:
    """Returns names and shapes of the parameters of a vision tower and, where there is one, a text tower."""
    return dict(zip(("vision", "text"), map(tree_of, towers), strict=False))


def image_encoder(tower: VisionTower, *, depth: int, patch_size: int) -> EncodeImageFn:
    """Returns `Backbone.encode_image` over a vision module with this number of blocks.

    Sides that are not multiples of `patch_size` are warned about: the published towers pad or cut them.
    """

    def encode_image(
        params: Params, images: Float[AnyArray, "b H W 3"], **options: Unpack[VisionOptions]
    ) -> VisionFeatures:
        """Encodes normalized images, see `EncodeImageFn`."""
        _check_array("The images", images, ("images", "height", "width", 3), _IMAGES)
        traced = isinstance(images, jax.core.Tracer)
        # No array of absolute values: it would be a second batch of images.
        largest = 0 if traced else max(images.max(initial=0), -images.min(initial=0))
        if largest > LARGEST_INPUT:
            raise UserError(f"The images reach {largest:g}. {_IMAGES[-1]}")
        if any(side % patch_size for side in images.shape[1:3]):
            logging.warning(
                "Images of %dx%d pixels are padded or cut, since the patch size is %d. Resize them to"
                " multiples of it.",
                *(images.shape[2], images.shape[1], patch_size),
            )
        layers, vv_from, blocks = options.get("layers"), options.get("vv_from"), range(1, depth + 1)
        several = isinstance(layers, Sequence) and len(layers) > 0
        if layers is not None and not (several and all(layer in blocks for layer in layers)):
            raise UserError(
                f"layers={layers!r} is not valid. The vision tower has the layers 1 to {depth}. Pass"
                " one or more of them, for example (1,)."
            )
        if vv_from is not None and vv_from not in blocks:
            raise UserError(
                f"vv_from={vv_from} is not valid. The vision tower has the blocks 1 to {depth}. Pass one of"
                " them, or None."
            )
        if (path := options.get("vv_path", "beside")) not in get_args(VVPath):
            hint = suggest(path, get_args(VVPath))
            raise UserError(f"vv_path={path!r} is not valid. {hint}")
        _check_adapters(options.get("adapters"), tower)
        if (prompts := options.get("prompts")) is not None:
            rows = min((*np.shape(prompts)[:1], depth))
            sets = 1 if np.shape(prompts)[1:2] == (1,) else len(images)
            shape = (rows, sets, "tokens", tower.sizes.width)
            _check_array("The prompts", prompts, shape, _PROMPTS)
        windows, shortest = options.get("windows", ()), min(images.shape[1:3]) // patch_size
        if not all(1 <= size <= shortest for size in windows):
            raise UserError(
                f"windows={windows!r} is not valid. The images have {shortest} patches a side. Pass sizes"
                f" from 1 to {shortest}."
            )
        features: VisionFeatures = _apply(tower, params, "vision", images, **options)
        return features

    return encode_image


def text_side(tower: TextTower, tokenize: TokenizeFn) -> TextSide:
    """Returns the text side over a module with the methods `embed` and `encode`."""

    def apply(params: Params, *arrays: AnyArray | None, **options: Any) -> Array:
        out: Array = _apply(tower, params, "text", *arrays, **options)
        return out

    def tokenize_texts(texts: Sequence[str]) -> Tokens:
        # The letters of a single text would be taken for texts.
        several = isinstance(texts, Iterable) and not isinstance(texts, str)
        given: list[Any] = list(texts) if several else [None]  # an iterator can be read once
        if not all(isinstance(text, str) for text in given):
            raise UserError(f"The texts are {texts!r}; expected a list of strings. Pass one.")
        # Names of folders may contain bytes that are not text.
        return tokenize([text.encode(errors="replace").decode() for text in given])

    def embed_tokens(params: Params, token_ids: Int[AnyArray, "t n"]) -> Float[Array, "t n e"]:
        _check_array("The token ids", token_ids, ("texts", "tokens"), _TOKENS)
        highest = token_ids.max(initial=0) if isinstance(token_ids, np.ndarray) else 0
        if highest >= tower.sizes.vocabulary:  # the last token would be looked up
            raise UserError(
                f"The token ids reach {highest}, but the text tower has {tower.sizes.vocabulary} tokens."
                f" {_TOKENS[-1]}"
            )
        return apply(params, token_ids, method="embed")

    def encode_prompts(
        params: Params,
        embeddings: Float[AnyArray, "t n e"],
        paddings: Int[AnyArray, "t n"],
        deep_prompts: Float[AnyArray, "deep #t p e"] | None = None,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "t d"]:
        _check_adapters(options.get("adapters"), tower)
        axes = ("texts", "tokens", tower.sizes.width)
        _check_array("The embeddings", embeddings, axes, _EMBEDDINGS)
        _check_array("The paddings", paddings, embeddings.shape[:2], _TOKENS)
        if deep_prompts is not None:
            sets = 1 if np.shape(deep_prompts)[1:2] == (1,) else embeddings.shape[0]
            shape = ("blocks", sets, "tokens", tower.sizes.width)
            _check_array("The deep prompts", deep_prompts, shape, _DEEP_PROMPTS)
        return apply(params, embeddings, paddings, deep_prompts, method="encode", **options)

    def encode_text(
        params: Params,
        token_ids: Int[AnyArray, "t n"],
        paddings: Int[AnyArray, "t n"],
        **options: Unpack[TextOptions],
    ) -> Float[Array, "t d"]:
        return encode_prompts(params, embed_tokens(params, token_ids), paddings, **options)

    return TextSide(
        width=tower.sizes.width,
        depth=tower.sizes.depth,
        length=tower.sizes.length,
        num_start_tokens=tower.sizes.num_start_tokens,
        tokenize=tokenize_texts,
        embed_tokens=embed_tokens,
        encode_text=encode_text,
        encode_prompts=encode_prompts,
    )


LARGEST_INPUT = 20  # of a tower; normalized images reach 3
# The type of an argument, its name, and the remedy for another.
_IMAGES = (
    jnp.floating,
    "floating-point",
    "Pass backbone.preprocess.normalize(images) of 8-bit images, or of one image as image[None].",
)
_TOKENS = jnp.integer, "integer", "Pass what backbone.tokenize(texts) returns."
_EMBEDDINGS = jnp.floating, "floating-point", "Pass what backbone.embed_tokens returns."
_DEEP_PROMPTS = jnp.floating, "floating-point", "Pass one set for all texts, or one for each."
_PROMPTS = jnp.floating, "floating-point", "Pass one set for all images, or one for each."
_ADAPTERS = jnp.floating, "floating-point", "Pass one matrix for each of the first blocks."


def _check_adapters(adapters: Adapters | None, tower: VisionTower | TextTower) -> None:
    """Raises UserError if there are adapters of another width, or for more blocks than there are."""
    if adapters is not None:
        s, kernels = tower.sizes, adapters.kernels
        rows = min((*np.shape(kernels)[:1], s.depth))
        _check_array("The adapters", kernels, (rows, s.width, s.width), _ADAPTERS)


def _check_array(
    what: str, array: Any, axes: Sequence[str | int], form: tuple[type, str, str]
) -> None:
    """Raises UserError if an argument is not an array with these axes (named ones have any length)."""
    kind, name, remedy = form
    found = type(array).__name__
    # Traced arrays are among them: a compiled function checks once.
    if isinstance(array, np.ndarray | jax.Array):
        found = f"{array.dtype} {list(array.shape)}"
        pairs = zip(axes, array.shape, strict=False)
        same = array.ndim == len(axes) and all(isinstance(a, str) or a == n for a, n in pairs)
        if same and jnp.issubdtype(array.dtype, kind):
            return
    expected = f"{name} [{', '.join(map(str, axes))}]"
    raise UserError(f"{what} are {found}; expected {expected}. {remedy}")


def _apply(tower: nn.Module, params: Params, side: str, *arrays: Any, **options: Any) -> Any:
    """Applies a tower with its side of the parameters."""
    if not isinstance(params, Mapping) or side not in params:
        raise UserError(
            f"The first argument is {type(params).__name__} without {side!r}. Pass backbone.params."
        )
    leaves, structure = jax.tree.flatten((arrays, options))
    is_array = [isinstance(x, np.ndarray | jax.Array) for x in leaves]
    static = tuple(None if array else x for x, array in zip(leaves, is_array, strict=True))
    traced = [x if array else None for x, array in zip(leaves, is_array, strict=True)]
    try:
        return _apply_compiled(tower, structure, static, params[side], traced)
    except flax.errors.FlaxError as error:
        raise UserError(
            f"The {side!r} parameters are not those of this backbone. Pass its own backbone.params."
        ) from error


# Traced once per tower and shapes, and inlined into the programs that call it. Options that are not arrays,
# such as block numbers, are static.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _apply_compiled(
    tower: nn.Module,
    structure: Any,
    static: tuple[Any, ...],
    params: Params,
    traced: list[Array | None],
) -> Any:
    leaves = [one if x is None else x for x, one in zip(traced, static, strict=True)]
    arrays, options = jax.tree.unflatten(structure, leaves)
    return tower.apply({"params": params}, *arrays, **options)


def apply_options(
    name: str,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    sizes: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the family's options with the caller's; sizes that are given again are only checked.

    Args:
      name: of the backbone, for errors.
      options: the family's own, with their defaults.
      overrides: the caller's.
      sizes: of the vision and of the text tower, read from the arrays.

    Raises:
      UserError: for an unknown option, or a size that the arrays contradict.
    """
    vision, text = sizes
    chosen = dict(options)
    for key, value in overrides.items():
        # A size that both towers have is the vision tower's, unless the key begins with "text_".
        shown = vision.get(key.removeprefix("vision_"), text.get(key.removeprefix("text_")))
        if key in chosen:
            chosen[key] = value
        elif shown is None:
            hint = suggest(key, sorted({*LoadOptions._fields[:-1], *options, *vision, *text}))
            raise UserError(f"{key!r} is not an option of {name}. {hint}")
        elif shown != value:
            raise UserError(
                f"{key}={value} contradicts the weights of {name}, which have {shown}. Omit it."
            )
    return chosen


def check_activation(activation: str | None, known: Collection[str], family: str) -> None:
    """Raises UserError if an activation is not one of a family's; None is its default."""
    if activation is not None and activation not in known:
        raise UserError(
            f"activation={activation!r} is not an activation of {family}."
            f" {suggest(str(activation), known)}"
        )


def joint_digest(paths: Sequence[PathLike]) -> str:
    """Returns the SHA-256 over the digests of the weight files."""
    return hashlib.sha256("".join(files.digest(path) for path in paths).encode()).hexdigest()
