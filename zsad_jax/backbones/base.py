"""The contract that every frozen vision-language model fulfils."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.data.preprocess import Preprocess

Params = Any  # a pytree of arrays


class VisionFeatures(NamedTuple):
    """What a vision tower says of a batch of images; nothing is L2-normalised.

    Attributes:
      global_tokens: G is 2 for TIPS, 1 for CLIP and SigLIP.
      patches: one entry of axis 1 per requested layer, on the patch grid.
      extras: further arrays by name, only those that were asked for.
    """

    global_tokens: Float[Array, "b g d"]
    patches: Float[Array, "b layers h w p"]
    extras: dict[str, Array] = {}  # noqa: RUF012 - never written to


class Tokenizer(Protocol):
    """Texts to token ids."""

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "t n"], Int[np.ndarray, "t n"]]:
        """Token ids and paddings (1 = pad)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Backbone:
    """A frozen vision-language model: pure functions, and the parameters that they take.

    `params` is always an argument of the functions, never closed over.

    Attributes:
      name: the released checkpoint ("tips-l14-hr"), or the family ("tips") when given as files.
      params: {"vision": tree, "text": tree}.
      preprocess: how an image becomes the tower's input.
      temperature: divides the cosine before a softmax (the trained one).
      patch_size, embed_dim, vision_width, vision_depth, num_global_tokens: sizes of the vision side;
        embed_dim is the width of the joint space.
      num_start_tokens: tokens before the words of a text (CLIP 1, TIPS 0); learned tokens enter behind them.
      text_width, text_depth, text_length: sizes of the text side (text_length: tokens per text).
      digest: SHA-256 over the weight files, so that results can name them.
      demonstration: True for the nano models, whose outputs are not for decisions.
      encode_image: (params, images [b H W 3], *, layers=None, project=True, vv_from=None, cls_norm=True)
        -> VisionFeatures. Layers count from 1; None is the last. project=False: patches without the final
        norm and projection. vv_from: from this block on, patches are of the value-value stream.
        cls_norm=False: global tokens without the final norm.
      tokenize: texts -> (token_ids [t n], paddings [t n], 1 = pad), on the host.
      embed_tokens: (params, token_ids [t n]) -> [t n e]: what learned tokens are put among.
      encode_text: (params, token_ids, paddings) -> [t d].
      encode_prompts: (params, embeddings [t n e], paddings [t n], deep_prompts=None [depth, 1 or t, p, e])
        -> [t d]. Row j of the deep prompts goes into block j+2: CLIP puts them in place of the tokens behind
        the start token, TIPS in front of all tokens.
    """

    name: str
    params: Params
    preprocess: Preprocess
    temperature: float
    patch_size: int
    embed_dim: int
    num_global_tokens: int
    num_start_tokens: int
    vision_width: int
    vision_depth: int
    text_width: int
    text_depth: int
    text_length: int
    digest: str
    demonstration: bool
    encode_image: Callable[..., VisionFeatures]
    tokenize: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
    embed_tokens: Callable[..., Array]
    encode_text: Callable[..., Array]
    encode_prompts: Callable[..., Array]
