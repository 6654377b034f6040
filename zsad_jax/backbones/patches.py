"""From an image to the tokens of its patches, as every vision tower begins."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one matrix: a convolution whose stride is its size."""

    patch_size: int
    width: int
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        p = self.patch_size
        shape = (p, p, 3, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), shape)
        b, height, width, _ = images.shape
        patches = images.reshape(b, height // p, p, width // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, height // p, width // p, p * p * 3).astype(self.dtype)
        embedded = patches @ kernel.reshape(-1, self.width).astype(self.dtype)
        if not self.use_bias:
            return embedded
        return embedded + self.param("bias", nn.initializers.zeros, (self.width,)).astype(
            self.dtype
        )
