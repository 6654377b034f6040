"""The prompt learner of AnomalyCLIP and its successors, as functions of a plain parameter tree.

A learner is {"normal", "abnormal": [P, e], "deep": [blocks, p, e]}: learned tokens in front of the words of
the two states, and further ones for the text blocks after the first. Without deep prompts there is no
"deep".
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params
from zsad_jax.methods.blocks import TEXT_DEPTH, scale_block
from zsad_jax.methods.layers import init_normal, round_to_float16
from zsad_jax.methods.prompts import encode_with_context

STATES = ("normal", "abnormal")  # index 0 and 1 everywhere
Learner = dict[str, Float[Array, "..."]]


def count_deep_blocks(backbone: Backbone, depth: int, num_deep_prompts: int) -> int:
    """Text blocks with deep prompts: the first block takes the prompts themselves.

    Args:
      backbone: whose text tower it is.
      depth: blocks with learned tokens, the first one included, in a tower of 12.
      num_deep_prompts: of each block; 0: there are none.
    """
    return scale_block(depth, backbone.text_depth, of=TEXT_DEPTH) - 1 if num_deep_prompts else 0


def init_learner(
    key: Array, width: int, *, num_prompts: int, deep: tuple[int, int], std: float
) -> Learner:
    """Learned tokens from N(0, std²).

    Args:
      key: of the random numbers.
      width: of a token embedding.
      num_prompts: learned tokens of each state.
      deep: blocks with deep prompts, and how many each has.
      std: of the normal distribution.
    """
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (num_prompts, width))
    if deep[0]:
        shapes["deep"] = (*deep, width)
    keys = jax.random.split(key, len(shapes))
    return {
        name: init_normal(one, shape, std=std)
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def encode_learners(
    backbone: Backbone,
    frozen: Params,
    words: tuple[Int[np.ndarray, "t n"], Int[np.ndarray, "t n"]],
    learners: Sequence[Learner],
    *,
    float16: bool = False,
) -> Float[Array, "t d"]:
    """Text features of (normal, abnormal) of each learner, in one batch and not normalised.

    Args:
      backbone: encodes.
      frozen: its parameters.
      words: ids and paddings of the fixed words of each text, from `tokenize`.
      learners: each has its own deep prompts, and all have them or none has.
      float16: whether deep prompts are rounded to float16 on their way.

    Raises:
      UserError: when words and learned tokens are more than the text tower can take.
    """
    context = jnp.stack([learner[state] for learner in learners for state in STATES])
    deep = None
    if "deep" in learners[0]:
        deep = jnp.stack([learner["deep"] for learner in learners for _ in STATES], axis=1)
        deep = round_to_float16(deep) if float16 else deep
    return encode_with_context(backbone, frozen, words, context, deep_prompts=deep)


def without_prefix(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict by their names inside the authors' prompt learner."""
    return {name.removeprefix("prompt_learner."): array for name, array in state.items()}


def learner_from_torch(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """A learner out of a PyTorch state dict; what has no effect or can be computed is left out.

    Args:
      state: arrays by name.
      prefix: in front of the names "ctx_pos", "ctx_neg" and "compound_prompts_text.0".

    Raises:
      KeyError: when one is missing.
    """
    found = {}
    for ours, theirs in zip(STATES, ("ctx_pos", "ctx_neg"), strict=True):
        tokens = np.asarray(state[f"{prefix}{theirs}"])
        several = [count for count in tokens.shape[:-2] if count > 1]  # prompts of a state
        found[ours] = tokens.reshape(*several, *tokens.shape[-2:])
    name = f"{prefix}compound_prompts_text."
    count = sum(key.startswith(name) for key in state)
    deep = [np.asarray(state[f"{name}{i}"]) for i in range(count)]
    return found | ({"deep": np.stack(deep)} if deep else {})
