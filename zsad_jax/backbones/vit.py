"""The vision tower that TIPS, DINOv2 and SigLIP share: patches with positions, pre-LN blocks, a final norm."""

import dataclasses
from typing import Any, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.backbones import transformer
from zsad_jax.backbones.base import VisionFeatures, VisionOptions

NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTSizes(transformer.VisionTowerSizes):
    """Sizes and options of the tower; a family adds how it resizes positions.

    Attributes:
      num_registers: tokens between the global tokens and those of patches, which are not returned.
      map_head: the global token is the output of a MAP head; False: of class tokens.
    """

    activation: str
    feed_forward: transformer.FeedForward = "mlp"
    num_registers: int = 0
    map_head: bool = False

    def resize_positions(
        self, grid: Float[Array, "1 g g d"], size: tuple[int, int]
    ) -> Float[Array, "1 h w d"]:
        raise NotImplementedError


def resize_by(
    grid: Float[Array, "1 g g d"], rows: Float[np.ndarray, "h g"], columns: Float[np.ndarray, "w g"]
) -> Float[Array, "1 h w d"]:
    """Resizes positions with one matrix for each axis."""
    highest = jax.lax.Precision.HIGHEST
    resized: Array = jnp.einsum("bgkd,hg,wk->bhwd", grid, rows, columns, precision=highest)
    return resized


def cubic_matrix(side: int, target: int, offset: float = 0.0) -> Float[np.ndarray, "target side"]:
    """Returns the matrix of a cubic resize without antialiasing, as in PyTorch.

    With `antialias=False`, `jax.image.resize` has another kernel and other borders, which is off by a third.
    """
    x = (np.arange(target)[:, None] + 0.5) * side / (target + offset) - 0.5
    taps = np.floor(x).astype(int) + np.arange(-1, 3)
    d = np.abs(x - taps)
    # The cubic kernel with a = -0.75.
    near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
    # At the border, the weights of several taps belong to one position.
    columns = np.clip(taps, 0, side - 1)[..., None] == np.arange(side)
    weights = np.where(d <= 1, near, far)[..., None] * columns
    return np.asarray(weights.sum(axis=1), np.float32)


class _TokenSequence(nn.Module):
    """Images to tokens: patches with positions, after global and register tokens without."""

    sizes: ViTSizes

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b n d"], tuple[int, int]]:
        s = self.sizes
        x = transformer.PatchEmbedding(s.patch_size, s.width, s.dtype, name="embedding")(images)
        b, h, w, d = x.shape
        normal = nn.initializers.normal(0.02)
        grid = self.param("posembed_input", normal, (1, s.grid, s.grid, d))
        x = (x + s.resize_positions(grid, (h, w)).astype(x.dtype)).reshape(b, h * w, d)
        if s.map_head:
            return x, (h, w)
        before = s.num_global_tokens + s.num_registers
        cls = self.param("cls", normal, (1, before, d))
        cls = jnp.broadcast_to(cls.astype(x.dtype), (b, before, d))
        return jnp.concatenate([cls, x], axis=1), (h, w)


class MapHead(nn.Module):
    """Multi-head attention pooling: a learned probe attends to all tokens, then a feed-forward part."""

    sizes: ViTSizes

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b 1 d"]:
        """Returns one token; the probe does not pass through a norm."""
        s = self.sizes
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, s.width))
        probe = jnp.broadcast_to(probe.astype(s.dtype), (len(tokens), 1, s.width))
        # One query needs none of the forms of `transformer.Attention`.
        attention = nn.MultiHeadDotProductAttention(
            s.num_heads, dtype=s.dtype, force_fp32_for_softmax=True
        )
        x: Array = attention(probe, tokens.astype(s.dtype))
        y = transformer.layer_norm(NORM_EPSILON, name="LayerNorm_0")(x).astype(s.dtype)
        y = transformer.Mlp(s.mlp_dim, s.activation, s.dtype, name="MlpBlock_0")(y, None)
        return (x + y).astype(jnp.float32)


class _Encoder(nn.Module):
    sizes: ViTSizes

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], **options: Unpack[VisionOptions]
    ) -> VisionFeatures:
        s = self.sizes
        tokens, (h, w) = _TokenSequence(s, name="ToTokenSequence_0")(images)
        tower = transformer.Transformer(
            s, feed_forward=s.feed_forward, activation=s.activation, name="transformer"
        )
        x, outputs = transformer.encode_tokens(tower, tokens, options)
        # The norm was trained on the last block alone. Patches of earlier blocks pass it too, as over CLIP in
        # methods that compare several layers.
        norm = transformer.layer_norm(NORM_EPSILON, name="encoder_norm")
        finish = norm if options.get("patch_norm", True) else jnp.float32
        patches = jnp.stack([finish(y[:, -h * w :]) for y in outputs], axis=1)
        patches = patches.reshape(*patches.shape[:2], h, w, s.width)
        last = [norm, MapHead(s, name="MAPHead_0")] if s.map_head else [norm]

        def pool(x: Array, norm: Any, *head: Any) -> Any:
            if head:  # trained on normalized tokens alone
                return head[0](norm(x))
            tokens = x[:, : s.num_global_tokens]
            return norm(tokens) if options.get("cls_norm", True) else tokens

        return VisionFeatures(
            pool(x, *last),
            patches,
            transformer.encode_windows(
                lambda y, run, *last: pool(run(y)[0], *last),
                *([tower, *last], tokens, (h, w), options.get("windows", ())),
            ),
        )


class VisionEncoder(transformer.VisionTower):
    """The image side: global tokens and the patch tokens, all through the final norm."""

    sizes: ViTSizes

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], **options: Unpack[VisionOptions]
    ) -> VisionFeatures:
        """Encodes normalized RGB images; see `EncodeImageFn`.

        Rows and columns that do not fill a patch are ignored.
        """
        return _Encoder(self.sizes, name="encoder")(images, **options)
