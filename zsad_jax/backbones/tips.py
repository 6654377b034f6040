"""TIPS and TIPSv2 as Flax modules over the published files.

The modules' parameter trees are those of the native npz files; PyTorch files are recognized by their keys and
re-arranged. Sizes are read from the arrays. The two lineages differ in the GELU (native: tanh, PyTorch: exact)
and in the text side's LayerNorm epsilon (1e-6, 1e-5); each file's own is the default.

Sources: Maninis et al., "TIPS: Text-Image Pretraining with Spatial Awareness" (ICLR 2025), and its release.
"""

import dataclasses
from typing import Any, NamedTuple, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int

from zsad_jax.backbones import family, transformer, vit
from zsad_jax.backbones.base import Backbone, Params, TextOptions, VisionFeatures, VisionOptions
from zsad_jax.backbones.checkpoints import tips as tips_checkpoints
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.backbones.checkpoints.torch_layout import check_same_heads
from zsad_jax.backbones.registry import Release, Sizes, WeightFiles
from zsad_jax.backbones.tokenizers import tokenize_sentencepiece
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

TEXT_LENGTH = 64  # tokens a text is padded to, in every release
MAX_TIMESCALE = 10_000
ACTIVATIONS = ("gelu", "gelu_tanh")


def pad_to_patches(images: Float[Array, "b H W 3"], patch_size: int) -> Float[Array, "b H2 W2 3"]:
    """Zero-pads both sides to a multiple of the patch; an odd pixel goes to the bottom and right."""
    short = [-size % patch_size for size in images.shape[1:3]]
    if not any(short):
        return images
    # As the native code does; the PyTorch release rejects such images.
    return jnp.pad(images, ((0, 0), *((n // 2, n - n // 2) for n in short), (0, 0)))


def resize_position_grid(
    grid: Float[Array, "1 g g d"], size: tuple[int, int], *, stage: tuple[int, int] | None = None
) -> Float[Array, "1 h w d"]:
    """Resizes positions bilinearly (half-pixel centers, antialiased when shrinking), by way of `stage`.

    The PyTorch files of TIPS v1 high resolution hold a 32x32 grid that was resized from the native 16x16 one;
    16 -> 32 -> 37 is not 16 -> 37, so `stage=(32, 32)` reproduces on native files what published numbers used.
    """
    for target in (stage, size):
        if target is not None and grid.shape[1:3] != tuple(target):
            # The antialiasing default is right here: both releases use it, unlike the detectors over CLIP.
            grid = jax.image.resize(grid, (1, *target, grid.shape[-1]), "bilinear")
    return grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSizes(vit.ViTSizes):
    """Sizes and options of a vision tower."""

    num_global_tokens: int = 2
    activation: str = "gelu_tanh"
    posemb_stage: tuple[int, int] | None = None

    def resize_positions(
        self, grid: Float[Array, "1 g g d"], size: tuple[int, int]
    ) -> Float[Array, "1 h w d"]:
        return resize_position_grid(grid, size, stage=self.posemb_stage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSizes(transformer.TextTowerSizes):
    """Sizes and options of a text tower."""

    length: int = TEXT_LENGTH
    num_start_tokens: int = 0
    text_ln_eps: float = 1e-6


class VisionEncoder(vit.VisionEncoder):
    """The image side: two global tokens and the patch tokens, all through the final norm.

    The first global token was trained on captions from the web, the second on synthetic ones.
    """

    sizes: VisionSizes

    def __call__(
        self, images: Float[Array, "b H W 3"], **options: Unpack[VisionOptions]
    ) -> VisionFeatures:
        """Encodes RGB images in [0, 1]; see `EncodeImageFn`.

        Sides that are not a multiple of the patch size are padded with zeros.
        """
        return super().__call__(pad_to_patches(images, self.sizes.patch_size), **options)


def sinusoid(length: int, width: int) -> Float[np.ndarray, "n d"]:
    """Returns the text side's position table: sines, then cosines, of geometric wavelengths up to 10,000."""
    half = width // 2
    # The last of `half` frequencies is 1 / 10,000 itself, hence half - 1 steps.
    frequencies = np.exp(-np.arange(half) * (np.log(MAX_TIMESCALE) / max(half - 1, 1)))
    angles = np.arange(length)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    # An odd width has no partner for its last number, which is 0 as in the published code.
    return np.pad(table, ((0, 0), (0, width - 2 * half))).astype(np.float32)


class TokenEmbedding(nn.Module):
    """The table of token embeddings, scaled by sqrt(width) on look-up."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, token_ids: Int[Array, "t n"]) -> Float[Array, "t n d"]:
        scale = self.width**-0.5
        table = self.param("emb_var", nn.initializers.normal(scale), (self.vocabulary, self.width))
        # Rows start with entries of about width^-1/2; scaled, they are as large as the positions.
        embedded: Array = table[token_ids] * (self.width**0.5)
        return embedded


class TextEncoder(transformer.TextTower):
    """The text side: bidirectional over the valid tokens, pooled by their mean after the final norm."""

    sizes: TextSizes

    def setup(self) -> None:
        s = self.sizes
        self.token_emb = TokenEmbedding(s.vocabulary, s.width)
        # ReLU in every size, and no SwiGLU even where the vision tower has one (g/14).
        self.transformer = transformer.Transformer(s, activation="relu", norm_epsilon=s.text_ln_eps)
        self.text_encoder_norm = transformer.layer_norm(s.text_ln_eps)
        self.temperature_contrastive = self.param(
            "temperature_contrastive", nn.initializers.constant(0.05), ()
        )

    def embed(self, token_ids: Int[Array, "t n"]) -> Float[Array, "t n d"]:
        """Looks up scaled token embeddings, without positions; learned tokens enter here, unscaled."""
        return self.token_emb(token_ids)

    def encode(
        self,
        embeddings: Float[Array, "t n d"],
        paddings: Int[Array, "t n"],
        deep_prompts: Float[Array, "deep #t p d"] | None = None,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "t d"]:
        """Returns text embeddings of token embeddings; zeros for a text that is all padding."""
        s = self.sizes
        valid = paddings == 0
        x = embeddings + sinusoid(embeddings.shape[1], s.width)
        x = self.run(self.transformer, x, deep_prompts, options, valid)
        # Learned tokens are valid ones, so they take part in the mean.
        x = self.text_encoder_norm(x) * valid[..., None]
        # The small number keeps a text that is all padding at zero instead of NaN.
        return jnp.sum(x, axis=1) / (jnp.sum(valid, axis=1, keepdims=True) + 1e-8)


def load(
    name: str, located: WeightFiles, release: Release | None, options: family.LoadOptions
) -> Backbone:
    """Reads TIPS from its two files; see `family.LoadFn`.

    Raises:
      UserError: for an unknown option, or arrays that do not fit.
    """
    if located.vision is None or located.text is None:
        raise UserError(
            "TIPS is published as two files. Pass vision=PATH and text=PATH instead of weights=PATH."
        )
    family.check_activation(options.activation, ACTIVATIONS, "TIPS")
    text_heads = options.text_num_heads or options.num_heads
    vision = _read(located.vision, "vision", options.num_heads)
    towers = vision, _read(located.text, "text", text_heads)
    sizes = _choose_sizes(name, towers, options, release)
    if sizes[0].width != sizes[1].width:
        raise UserError(
            f"{towers[0].path} is {sizes[0].width} wide and {towers[1].path} {sizes[1].width},"
            " so the two files are not of one model. Pass files of the same model."
        )
    params = {"vision": towers[0].params, "text": towers[1].params}
    # Published as the divisor itself, where CLIP has the logarithm of a factor.
    temperature = float(params["text"]["temperature_contrastive"])
    encoders = VisionEncoder(sizes[0]), TextEncoder(sizes[1])
    return FAMILY.assemble(name, located, release, options, encoders, params, temperature)


class _Tower(NamedTuple):
    """Parameters of one file on the device, and the sizes that its arrays show."""

    path: PathLike
    params: Params
    sizes: Sizes
    pytorch: bool


def _read(path: PathLike, side: str, heads: int | None) -> _Tower:
    source, arrays = f"The {side} file {path}", read_arrays(path)
    native = tips_checkpoints.from_arrays(arrays, side, heads, source)
    sizes = tips_checkpoints.read_sizes(native, side)
    check_same_heads(sizes["num_heads"], heads, source)
    vision = side == "vision"
    tower = VisionEncoder(VisionSizes(**sizes)) if vision else TextEncoder(TextSizes(**sizes))
    params = jax.tree.map(jnp.asarray, native.fit(transformer.tree_of(tower)))
    # Put on the device here, so that the host's copy is gone before the other file is read.
    return _Tower(path, params, sizes, tips_checkpoints.is_pytorch(arrays))


def _choose_sizes(
    name: str, towers: tuple[_Tower, _Tower], options: family.LoadOptions, release: Release | None
) -> tuple[VisionSizes, TextSizes]:
    """Returns the sizes with the defaults of the lineage and the caller's options."""
    vision, text = towers
    defaults = {
        "gelu_approximate": None,
        "posemb_stage": None,
        "text_ln_eps": 1e-5 if text.pytorch else 1e-6,
    }
    chosen = family.apply_options(name, defaults, options.overrides, (vision.sizes, text.sizes))
    tanh = chosen["gelu_approximate"]
    if not isinstance(tanh, bool | None):
        raise UserError(f"gelu_approximate={tanh!r} is not a boolean. Pass True or False.")
    if tanh is None:
        tanh = options.activation == "gelu_tanh" if options.activation else not vision.pytorch
    text_ln_eps = chosen["text_ln_eps"]
    if not isinstance(text_ln_eps, int | float) or not 0 < text_ln_eps <= 1:
        raise UserError(
            f"text_ln_eps={text_ln_eps!r} is not a number above 0 and at most 1. Pass 1e-5, for example."
        )
    stage = _read_stage(chosen["posemb_stage"])
    if stage and release and not release.low_resolution_positions:
        logging.info("%s ignores posemb_stage, which is for TIPS v1 high-resolution weights.", name)
        stage = None
    return (
        VisionSizes(
            **vision.sizes,
            activation="gelu_tanh" if tanh else "gelu",
            posemb_stage=stage,
            dtype=options.dtype,
            attention=options.attention,
        ),
        TextSizes(**text.sizes, text_ln_eps=text_ln_eps, dtype=options.dtype),
    )


def _read_stage(stage: Any) -> tuple[int, int] | None:
    if stage in (None, (), (None,)):
        return None
    sides = tuple(stage) if isinstance(stage, tuple | list) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**13 for side in sides):
        raise UserError(
            f"posemb_stage={stage!r} is not the size of a grid. Pass None or two integers, such as (32, 32)."
        )
    return sides


FAMILY = family.Family(
    "tips",
    load,
    "vision=PATH and text=PATH",
    [(VisionEncoder, VisionSizes), (TextEncoder, TextSizes)],
    tokenize_sentencepiece,
    lineages=True,
)
