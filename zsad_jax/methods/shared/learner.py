"""The prompt learner of AnomalyCLIP and its successors, as functions of a plain parameter tree.

A learner is {"normal", "abnormal": [P, e], "deep": [blocks, p, e]}: learned tokens in front of the words of
the two states, and further ones for the text blocks after the first. Without deep prompts there is no
"deep".
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import Backbone, Params
from zsad_jax.methods.shared.blocks import TEXT_DEPTH, scale_block
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.methods.shared.layers import init_tokens, round_to_float16
from zsad_jax.methods.shared.prompts import encode_with_context
from zsad_jax.utils.config import within

STATES = ("normal", "abnormal")  # index 0 and 1 everywhere
UNUSED_WIDTH = 896  # outputs of the projections in published prompt learners that nothing reads
Learner = dict[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig(MethodConfig):
    """Options of the methods with deep prompts.

    Attributes:
      deep_prompt_depth: text blocks, of a tower of 12, with learned tokens, including the first, whose are
        the prompts themselves; 1: no deep prompts.
      num_deep_prompts: deep prompts per block, shared by all prompts of a learner; 0: none.
      deep_prompts_float16: round deep prompts to float16 in the forward pass, as the published code does.
    """

    deep_prompt_depth: int = within(9, 1, TEXT_DEPTH)
    num_deep_prompts: int = within(4, 0)
    deep_prompts_float16: bool = False


def count_deep_blocks(backbone: Backbone, config: LearnerConfig) -> int:
    """Returns the number of text blocks with deep prompts, which the first block never has."""
    depth = scale_block(config.deep_prompt_depth, backbone.text_depth, of=TEXT_DEPTH)
    return depth - 1 if config.num_deep_prompts else 0


def count_unused_projections(backbone: Backbone, config: LearnerConfig) -> int:
    """Returns the size of the linear layers, one per deep block, that the published code never uses."""
    return count_deep_blocks(backbone, config) * (backbone.text_width + 1) * UNUSED_WIDTH


def init_learner(
    key: Array, backbone: Backbone, config: LearnerConfig, *, num_prompts: int
) -> Learner:
    """Returns a new learner with `num_prompts` tokens per state, drawn from N(0, init_std²)."""
    width, num_deep = backbone.text_width, count_deep_blocks(backbone, config)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (num_prompts, width))
    if num_deep:
        shapes["deep"] = (num_deep, config.num_deep_prompts, width)
    return init_tokens(jax.random.split(key, len(shapes)), shapes, std=config.init_std)


def encode_learners(
    backbone: Backbone,
    frozen: Params,
    words: tuple[Int[np.ndarray, "t n"], Int[np.ndarray, "t n"]],
    learners: Sequence[Learner],
    *,
    float16: bool = False,
) -> Float[Array, "t d"]:
    """Returns the raw text features of (normal, abnormal) of each learner, encoded in one batch.

    Args:
      backbone: the frozen model.
      frozen: its parameters.
      words: ids and paddings of the fixed words of each text, from `tokenize`.
      learners: each has its own deep prompts, or none of them has any.
      float16: whether to round deep prompts to float16.

    Raises:
      UserError: if words and learned tokens are more than the text tower can take.
    """
    context = jnp.stack([learner[state] for learner in learners for state in STATES])
    deep = None
    if "deep" in learners[0]:
        deep = jnp.stack([learner["deep"] for learner in learners for _ in STATES], axis=1)
        deep = round_to_float16(deep) if float16 else deep
    return encode_with_context(backbone, frozen, words, context, deep_prompts=deep)


def without_prefix(state: Mapping[str, np.ndarray], *modules: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a PyTorch state dict by their names inside the authors' modules."""
    first = {name: name.partition(".") for name in state}
    return {
        rest if module in modules else name: state[name]
        for name, (module, _, rest) in first.items()
    }


def learner_from_torch(state: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """Reads a learner from a PyTorch state dict; arrays without effect are dropped.

    Args:
      state: arrays by name.
      prefix: in front of the names "ctx_pos", "ctx_neg" and "compound_prompts_text.0".

    Raises:
      KeyError: if one is missing.
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
