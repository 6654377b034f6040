"""CLIP as Flax modules, of any ViT size, over OpenAI's, open_clip's and Hugging Face's weights.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML
2021), and its release; the position table is resized as the anomaly detectors over CLIP do it.
"""

import dataclasses
import functools
from typing import Any, Literal, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones import family, transformer, vit
from zsad_jax.backbones.base import Backbone, TextOptions, VisionFeatures, VisionOptions
from zsad_jax.backbones.checkpoints import clip as clip_checkpoints
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.backbones.registry import Release, WeightFiles
from zsad_jax.backbones.tokenizers import tokenize_bpe
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError

# OpenAI's, for all sizes and for most models that others trained.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NORM_EPSILON = 1e-5
NUM_START_TOKENS = 1  # rows before the words of a text; deep prompts take the rows behind them
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
NORMAL = nn.initializers.normal(0.02)
PositionRule = Literal["bilinear", "bicubic", "antialias"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSizes(transformer.VisionTowerSizes):
    """Sizes and options of a vision tower; `position_rule` is that of `resize_positions`."""

    activation: str = "quick_gelu"
    num_global_tokens: int = 1
    position_rule: PositionRule = "bilinear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSizes(transformer.TextTowerSizes):
    """Sizes and options of a text tower."""

    embed_dim: int
    activation: str = "quick_gelu"
    num_start_tokens: int = NUM_START_TOKENS


def resize_positions(
    table: Float[Array, "n d"], size: tuple[int, int], rule: PositionRule = "bilinear"
) -> tuple[Float[Array, " d"], Float[Array, "h w d"]]:
    """Returns the position of the class token, and those of the patches on a grid of this size.

    With half-pixel centers and in float32, always from the stored table. "antialias" is bicubic; the others
    do not antialias.
    """
    # The published detectors overwrite the table, so that a second size starts from the first one.
    side = round((table.shape[0] - 1) ** 0.5)
    grid = table[1:].reshape(side, side, -1).astype(jnp.float32)
    if size != (side, side):
        if rule == "bicubic":
            matrices = (vit.cubic_matrix(side, target) for target in size)
            return table[0], vit.resize_by(grid[None], *matrices)[0]
        # By default, jax.image.resize antialiases when shrinking and PyTorch's interpolate does not.
        antialias = rule == "antialias"
        kind = "bicubic" if antialias else "bilinear"
        grid = jax.image.resize(grid, (*size, grid.shape[-1]), kind, antialias=antialias)
    return table[0], grid


class VisionEncoder(transformer.VisionTower):
    """The image side: one class token and the patch tokens, in the joint space."""

    sizes: VisionSizes

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], **options: Unpack[VisionOptions]
    ) -> VisionFeatures:
        """Encodes normalized RGB images; see `EncodeImageFn`.

        Rows and columns that do not fill a patch are ignored, as by a convolution.
        """
        s = self.sizes
        tokens, (h, w) = self._tokens(images)
        tower = transformer.Transformer(
            s, activation=s.activation, norm_epsilon=NORM_EPSILON, name="transformer"
        )
        x, outputs = transformer.encode_tokens(tower, tokens, options)
        norm = transformer.layer_norm(NORM_EPSILON, name="ln_post")
        projection = self.param("projection", NORMAL, (s.width, s.embed_dim))

        def projected(x: Float[Array, "*b d"], *, normed: bool = True) -> Float[Array, "*b e"]:
            # The joint space is float32 even for a bfloat16 tower: cosines are divided by 0.01 to 0.07.
            x = (norm(x) if normed else x).astype(s.dtype)
            return (x @ projection.astype(s.dtype)).astype(jnp.float32)

        finish_patches = projected if options.get("project", True) else norm
        if not options.get("patch_norm", True):
            finish_patches = jnp.float32
        patches = [finish_patches(y[:, 1:]) for y in outputs]
        stacked = jnp.stack(patches, axis=1).reshape(x.shape[0], len(patches), h, w, -1)
        # Row 0 is the class token, which AnomalyCLIP and its successors project without the final norm.
        finish = functools.partial(projected, normed=options.get("cls_norm", True))
        windows = options.get("windows", ())
        found = transformer.encode_windows(
            lambda y, run: run(y)[0][:, :1], [tower], tokens, (h, w), windows
        )
        return VisionFeatures(finish(x[:, :1]), stacked, tuple(map(finish, found)))

    def _tokens(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b n d"], tuple[int, int]]:
        """Returns the class token and the patches, with their positions, after the first norm."""
        s = self.sizes
        embed = transformer.PatchEmbedding(
            s.patch_size, s.width, s.dtype, use_bias=False, name="embedding"
        )
        # Positions and the first norm are float32 in a bfloat16 tower too.
        x = embed(images).astype(jnp.float32)
        h, w = x.shape[1:3]
        token = self.param("class_embedding", NORMAL, (s.width,))
        table = self.param("positional_embedding", NORMAL, (1 + s.grid**2, s.width))
        first, grid = resize_positions(table, (h, w), s.position_rule)
        x = (x + grid).reshape(x.shape[0], h * w, s.width)
        first = jnp.broadcast_to(token + first, (x.shape[0], 1, s.width))
        x = transformer.layer_norm(NORM_EPSILON, name="ln_pre")(jnp.concatenate([first, x], axis=1))
        return x.astype(s.dtype), (h, w)


class TextEncoder(transformer.TextTower):
    """The text side: causal, read at the last valid token (the end token of a tokenized text)."""

    sizes: TextSizes

    def setup(self) -> None:
        s = self.sizes
        self.token_embedding = self.param("token_embedding", NORMAL, (s.vocabulary, s.width))
        self.positional_embedding = self.param(
            "positional_embedding", nn.initializers.normal(0.01), (s.length, s.width)
        )
        self.transformer = transformer.Transformer(
            s,
            activation=s.activation,
            norm_epsilon=NORM_EPSILON,
            causal=True,
            overwrite_from=s.num_start_tokens,
        )
        self.ln_final = transformer.layer_norm(NORM_EPSILON)
        self.projection = self.param("projection", NORMAL, (s.width, s.embed_dim))
        # ln(1 / 0.07), where training starts; released files hold the trained value.
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6593), ())

    def encode(
        self,
        embeddings: Float[Array, "t n e"],
        paddings: Int[Array, "t n"],
        deep_prompts: Float[Array, "deep #t p e"] | None = None,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "t d"]:
        """Returns text embeddings of token embeddings, read at the last token that is not padding.

        Padding needs no mask: it comes after that token, which does not see it.
        """
        s = self.sizes
        self.check_length(embeddings)
        x = embeddings + self.positional_embedding[: embeddings.shape[1]]
        x = self.run(self.transformer, x, deep_prompts, options)
        # By count, where the published code takes the largest id: learned tokens have no ids.
        last = jnp.maximum(jnp.sum(jnp.asarray(paddings) == 0, axis=1) - 1, 0)
        # One row of each text is enough: norm and projection do not mix rows.
        out: Array = self.ln_final(x[jnp.arange(x.shape[0]), last])
        if options.get("project", True):
            out = (out.astype(s.dtype) @ self.projection.astype(s.dtype)).astype(jnp.float32)
        return out


def load(
    name: str, located: WeightFiles, release: Release | None, options: family.LoadOptions
) -> Backbone:
    """Reads CLIP from one file with both towers, or one file each; see `family.LoadFn`.

    No format says which GELU a model was trained with: None is OpenAI's QuickGELU, and a model trained
    otherwise (LAION's) needs activation="gelu".

    Raises:
      UserError: for an unknown option, or arrays that do not fit.
    """
    recorded = release.vision.get("activation") if release else None
    activation = options.activation or recorded or "quick_gelu"
    family.check_activation(activation, ACTIVATIONS, "CLIP")
    paths = [path for path in (located.weights, located.vision, located.text) if path is not None]
    arrays = {key: array for path in paths for key, array in read_arrays(path).items()}
    source = f"The file {paths[0]}" if len(paths) == 1 else f"The files {paths[0]} and {paths[1]}"
    known = [s["num_heads"] for s in (release.vision, release.text) if s] if release else []
    vision_heads, text_heads = known or (None, None)
    native = clip_checkpoints.from_arrays(
        arrays,
        num_heads=options.num_heads or vision_heads,
        # What is known of a released text tower precedes `num_heads`, which may be meant for images alone.
        text_num_heads=options.text_num_heads or text_heads or options.num_heads,
        source=source,
    )
    shown = clip_checkpoints.read_sizes(native)
    family.apply_options(name, {}, options.overrides, shown)
    chosen: dict[str, Any] = {"dtype": options.dtype, "attention": options.attention}
    chosen["activation"] = activation
    sizes = VisionSizes(**shown[0], **chosen), TextSizes(**shown[1], **chosen)
    if sizes[0].embed_dim != sizes[1].embed_dim:
        raise UserError(
            f"{source} project images to {sizes[0].embed_dim} and texts to {sizes[1].embed_dim} numbers,"
            " so the two towers are not of one model. Pass files of the same model."
        )
    towers = VisionEncoder(sizes[0]), TextEncoder(sizes[1])
    params = jax.tree.map(jnp.asarray, native.fit(family.trees_of(towers)))
    # The file holds the logarithm of the factor of cosines, 1 / temperature.
    temperature = float(np.exp(-float(params["text"]["logit_scale"])))
    return FAMILY.assemble(name, located, release, options, towers, params, temperature)


def _forms(vision: VisionEncoder, text: TextEncoder) -> dict[str, Any]:
    # Detectors that started from open_clip run OpenAI's weights with its GELU, unlike their training.
    def exact(rule: PositionRule) -> tuple[VisionEncoder, TextEncoder]:
        sizes = dataclasses.replace(vision.sizes, activation="gelu", position_rule=rule)
        return VisionEncoder(sizes), TextEncoder(dataclasses.replace(text.sizes, activation="gelu"))

    return {"openai": (vision, text), "open_clip": exact("antialias"), "adaclip": exact("bicubic")}


FAMILY = family.Family(
    "clip",
    load,
    "vision=PATH and text=PATH, or weights=PATH",
    [(VisionEncoder, VisionSizes), (TextEncoder, TextSizes)],
    tokenize_bpe,
    functools.partial(
        Preprocess,
        resize="bicubic",
        mean=MEAN,
        std=STD,
        # The published detectors resize before they convert to RGB, which matters for palettes and alpha.
        rgb_first=False,
    ),
    _forms,
)
