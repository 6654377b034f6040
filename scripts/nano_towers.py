"""Differences between the two families of nano backbones, TIPS and CLIP, in pretraining.

Both use zsad_jax's own modules. A family defines how its towers are built; where their trees hold the patch
embedding, the positions and the temperature; how pixels and texts are encoded; and the published format in
which finished towers are written.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from jaxtyping import Array, Float, Int

from zsad_jax.backbones import clip, tips, tokenizers
from zsad_jax.backbones.checkpoints import clip as clip_checkpoints
from zsad_jax.utils import files

PATCH = 14
UNCUT_LENGTH = 1024  # tokens, more than any caption has
GRID = 16  # positions of a 224-pixel view; smaller images take a window of them
Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes shared by both towers."""

    width: int
    depth: int
    text_depth: int
    num_heads: int
    mlp_dim: int
    vocabulary: int


class Tips:
    """The family of tips-nano: two class tokens, sentencepiece, native npz files."""

    num_start_tokens = 0
    embedding = ("encoder", "ToTokenSequence_0", "embedding", "kernel")
    blocks = ("encoder", "transformer")
    temperature = "temperature_contrastive"
    tokenizer = "tokenizer.model"
    streams = (None,)  # ordinary patch tokens

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        common = {"num_heads": sizes.num_heads, "mlp_dim": sizes.mlp_dim, "width": sizes.width}
        self._vision = tips.VisionSizes(
            patch_size=PATCH, depth=sizes.depth, feed_forward="mlp", grid=GRID, **common
        )
        self.text = tips.TextEncoder(
            tips.TextSizes(vocabulary=sizes.vocabulary, depth=sizes.text_depth, **common)
        )

    def vision(self, grid: int = GRID) -> tips.VisionEncoder:
        return tips.VisionEncoder(dataclasses.replace(self._vision, grid=grid))

    def native(self, vision: Params) -> Params:
        """Returns the vision tower for pixels in [0, 1], from one trained on pixels minus 0.5.

        Without centering, each optimizer step shifts all patches together until they become
        indistinguishable.
        """
        flat = traverse_util.flatten_dict(vision)
        bias = (*self.embedding[:-1], "bias")
        flat[bias] = flat[bias] - 0.5 * flat[self.embedding].sum((0, 1, 2))
        return traverse_util.unflatten_dict(flat)

    def window(self, vision: Params, offset: Int[Array, " 2"], tall: int) -> Params:
        """Returns the tower with a window of its positions, `tall` patches high and wide."""
        flat = traverse_util.flatten_dict(vision)
        name, start = ("encoder", "ToTokenSequence_0", "posembed_input"), (0, *offset, 0)
        size = (1, tall, tall, self.sizes.width)
        flat[name] = jax.lax.dynamic_slice(flat[name], start, size)
        return traverse_util.unflatten_dict(flat)

    def pixels(self, images: Array) -> Float[Array, "b s s 3"]:
        return images.astype(jnp.float32) / 255

    def encode_temperature(self, temperature: float) -> Array:
        """Returns the value stored in the leaf `temperature`."""
        return jnp.float32(temperature)

    def tokenize(self, texts: list[str], path: pathlib.Path, length: int):
        return tokenizers.tokenize_sentencepiece(
            texts, path=path, length=length, vocabulary=self.sizes.vocabulary
        )

    def train_tokenizer(self, seed: int) -> bytes:
        import nano_captions

        return nano_captions.train_tokenizer(seed, self.sizes.vocabulary)

    def write(self, towers: Mapping[str, Params], folder: pathlib.Path) -> None:
        for side, tower in towers.items():
            arrays = traverse_util.flatten_dict(jax.tree.map(round_to_bfloat16, tower), sep="/")
            with files.replaced(folder / f"tips_nano_{side}.npz") as temporary:
                np.savez_compressed(temporary, **arrays)


class Clip:
    """The family of clip-nano: one class token, its own merges, a safetensors file with OpenAI's names."""

    num_start_tokens = clip.NUM_START_TOKENS
    embedding = ("embedding", "kernel")
    blocks = ("transformer",)
    temperature = "logit_scale"
    tokenizer = "bpe_simple_vocab.txt.gz"
    # Training alternates between patches of the ordinary and of the value-value stream.
    streams = (None, 1)
    text_length = 77

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        common = {"num_heads": sizes.num_heads, "mlp_dim": sizes.mlp_dim, "width": sizes.width}
        common |= {"embed_dim": sizes.width}
        self._vision = clip.VisionSizes(patch_size=PATCH, depth=sizes.depth, grid=GRID, **common)
        self.text = clip.TextEncoder(
            clip.TextSizes(
                vocabulary=sizes.vocabulary,
                depth=sizes.text_depth,
                length=self.text_length,
                **common,
            )
        )

    def vision(self, grid: int = GRID) -> clip.VisionEncoder:
        return clip.VisionEncoder(dataclasses.replace(self._vision, grid=grid))

    def native(self, vision: Params) -> Params:
        """Returns the tower unchanged, because CLIP's preprocessing subtracts the mean already."""
        return vision

    def window(self, vision: Params, offset: Int[Array, " 2"], tall: int) -> Params:
        """Returns the tower with a window of its positions, `tall` patches high and wide."""
        table, width = vision["positional_embedding"], self.sizes.width
        grid = table[1:].reshape(GRID, GRID, width)
        grid = jax.lax.dynamic_slice(grid, (*offset, 0), (tall, tall, width))
        table = jnp.concatenate([table[:1], grid.reshape(-1, width)])
        return {**vision, "positional_embedding": table}

    def pixels(self, images: Array) -> Float[Array, "b s s 3"]:
        mean, std = (np.asarray(one, np.float32) for one in (clip.MEAN, clip.STD))
        return (images.astype(jnp.float32) / 255 - mean) / std

    def encode_temperature(self, temperature: float) -> Array:
        """Returns the value stored in the leaf `temperature`."""
        return jnp.float32(-math.log(temperature))

    def tokenize(self, texts: list[str], path: pathlib.Path, length: int):
        ids, paddings = tokenizers.tokenize_bpe(
            texts, path=path, length=UNCUT_LENGTH, vocabulary=self.sizes.vocabulary
        )
        ids, paddings = ids[:, :length], paddings[:, :length]
        ids[paddings[:, -1] == 0, -1] = self.sizes.vocabulary - 1  # the end token
        return ids, paddings

    def train_tokenizer(self, seed: int) -> bytes:
        import nano_captions

        return nano_captions.train_merges(seed, self.sizes.vocabulary - 514)

    def write(self, towers: Mapping[str, Params], folder: pathlib.Path) -> None:
        from safetensors.numpy import save

        arrays = clip_checkpoints.to_openai(jax.device_get(dict(towers)))
        rounded = {name: np.ascontiguousarray(x, np.float16) for name, x in arrays.items()}
        with files.replaced(folder / "clip_nano.safetensors") as temporary:
            temporary.write_bytes(save(rounded))


FAMILIES = {"tips": Tips, "clip": Clip}


def write(family: Tips | Clip, towers: Mapping[str, Params], tokenizer, folder: pathlib.Path):
    """Writes the finished towers and their tokenizer."""
    family.write(towers, folder)
    with files.replaced(folder / family.tokenizer) as temporary:
        temporary.write_bytes(pathlib.Path(tokenizer).read_bytes())
    total = sum(path.stat().st_size for path in folder.iterdir())
    logging.info("%s: %.2f MB in total", folder, total / 1e6)


def round_to_bfloat16(leaf: Array) -> np.ndarray:
    """Rounds an array to bfloat16 precision, which about halves its compressed size; scalars are unchanged."""
    leaf = jnp.asarray(leaf)
    return np.asarray(leaf.astype(jnp.bfloat16).astype(leaf.dtype) if leaf.ndim else leaf)
