"""SigLIP and SigLIP2 (fixed resolutions) over big_vision's and Hugging Face's files.

In big_vision's conventions: the global token is that of a MAP head over the final norm; a text is read at the
last of its 64 positions, most of which are padding that takes part in attention; logits are cosines times a
trained scale plus a trained bias, and probabilities their sigmoid. Patches pass the final norm and no
projection. Positions are resized linearly with aligned corners.

Sources: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (ICCV 2023), Tschannen et al., "SigLIP 2"
(arXiv 2502.14786), and big_vision.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones import family, transformer, vit
from zsad_jax.backbones.base import Backbone, TextOptions, Tokens
from zsad_jax.backbones.checkpoints import siglip as siglip_checkpoints
from zsad_jax.backbones.checkpoints import vit as vit_checkpoints
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.backbones.registry import Release, WeightFiles
from zsad_jax.backbones.tokenizers import tokenize_sentencepiece
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError

NORMAL = nn.initializers.normal(0.02)
END = 1  # token id
OF_SIGLIP1 = (32_000, 250_000)  # sizes of the vocabularies, English and multilingual


def pad_of(vocabulary: int) -> int:
    """Returns the id of padding: 0 in SigLIP2; SigLIP repeats the end token."""
    return END if vocabulary in OF_SIGLIP1 else 0


def tokenize(texts: Sequence[str], *, vocabulary: int, **given: Any) -> Tokens:
    """Returns ids and paddings of texts; see `tokenize_sentencepiece`."""
    given |= {"end": (END,), "pad": pad_of(vocabulary), "vocabulary": vocabulary}
    return tokenize_sentencepiece(texts, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSizes(vit.ViTSizes):
    """Sizes and options of a vision tower."""

    activation: str = "gelu_tanh"
    num_global_tokens: int = 1
    map_head: bool = True

    def resize_positions(
        self, grid: Float[Array, "1 g g d"], size: tuple[int, int]
    ) -> Float[Array, "1 h w d"]:
        stored = np.arange(self.grid)
        matrices = (
            np.maximum(1 - np.abs(np.linspace(0, self.grid - 1, side)[:, None] - stored), 0)
            for side in size
        )
        return vit.resize_by(grid, *matrices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSizes(transformer.TextTowerSizes):
    """Sizes and options of a text tower."""

    embed_dim: int
    activation: str = "gelu_tanh"
    num_start_tokens: int = 0


class TextEncoder(transformer.TextTower):
    """The text side: bidirectional without a mask, read at the last position."""

    sizes: TextSizes

    def setup(self) -> None:
        s = self.sizes
        self.token_embedding = self.param("token_embedding", NORMAL, (s.vocabulary, s.width))
        self.positional_embedding = self.param("positional_embedding", NORMAL, (s.length, s.width))
        self.transformer = transformer.Transformer(s, activation=s.activation)
        self.ln_final = transformer.layer_norm(vit.NORM_EPSILON)
        self.head = nn.Dense(s.embed_dim, dtype=s.dtype)
        # ln 10 and -10, where training starts; released files hold the trained values.
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.3026), ())
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), ())

    def encode(
        self,
        embeddings: Float[Array, "t n e"],
        paddings: Int[Array, "t n"],
        deep_prompts: Float[Array, "deep #t p e"] | None = None,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "t d"]:
        """Returns text embeddings of token embeddings, which padding extends to the full length."""
        s = self.sizes
        self.check_length(embeddings)
        t, n, e = embeddings.shape
        rest = jnp.broadcast_to(self.token_embedding[pad_of(s.vocabulary)], (t, s.length - n, e))
        x = jnp.concatenate([embeddings, rest], axis=1) + self.positional_embedding
        x = self.run(self.transformer, x, deep_prompts, options)
        out: Array = self.ln_final(x[:, -1])
        if options.get("project", True):
            out = self.head(out.astype(s.dtype)).astype(jnp.float32)
        return out


def load(
    name: str, located: WeightFiles, release: Release | None, options: family.LoadOptions
) -> Backbone:
    """Reads SigLIP from one file with both towers; see `family.LoadFn`."""
    if located.weights is None:
        raise UserError("SigLIP is published as one file. Pass weights=PATH.")
    family.check_activation(options.activation, ("gelu_tanh", "gelu"), "SigLIP")
    source = f"The file {located.weights}"
    native = siglip_checkpoints.from_arrays(
        read_arrays(located.weights), options.num_heads, options.text_num_heads, source
    )
    vocabulary, width = native.need("text/token_embedding", None, None).shape
    text = {
        "vocabulary": vocabulary,
        "width": width,
        **native.block_sizes(siglip_checkpoints.TEXT_BLOCKS),
        "length": len(native.need("text/positional_embedding", None, width)),
        "embed_dim": native.need("text/head/kernel", width, None).shape[1],
    }
    vision = vit_checkpoints.vision_sizes(native, "vision/")
    family.apply_options(name, {}, options.overrides, (vision, text))
    chosen: dict[str, Any] = {"dtype": options.dtype, "attention": options.attention}
    chosen["activation"] = options.activation or "gelu_tanh"
    sizes = VisionSizes(**vision, **chosen), TextSizes(**text, **chosen)
    towers = vit.VisionEncoder(sizes[0]), TextEncoder(sizes[1])
    tree = native.fit(family.trees_of(towers))
    scale, bias = (float(tree["text"][f"logit_{name}"]) for name in ("scale", "bias"))
    # The file holds the logarithm of the factor of cosines, 1 / temperature.
    trained = math.exp(-scale), bias
    params = jax.tree.map(jnp.asarray, tree)
    return FAMILY.assemble(name, located, release, options, towers, params, *trained)


FAMILY = family.Family(
    "siglip",
    load,
    "weights=PATH",
    [(vit.VisionEncoder, VisionSizes), (TextEncoder, TextSizes)],
    tokenize,
    functools.partial(Preprocess, mean=(0.5,) * 3, std=(0.5,) * 3),
)
