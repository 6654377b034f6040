"""The prompt learner of AnomalyCLIP and its successors, as functions of a plain parameter tree.

A learner is {"normal", "abnormal": [P, e], "deep": [blocks, p, e]}: learned tokens in front of the words of
the two states, and further ones for the text blocks after the first. Without deep prompts there is no
"deep".
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.backbones.base import Backbone, Params, Tokens
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.methods.shared import layers, prompts
from zsad_jax.methods.shared.config import TEXT_DEPTH, MethodConfig, scale_block
from zsad_jax.utils.config import within
from zsad_jax.utils.errors import UserError

STATES = ("normal", "abnormal")  # index 0 and 1 everywhere
UNUSED_WIDTH = 896  # outputs of the projections in published prompt learners that nothing reads
Learner = dict[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig(MethodConfig):
    """Options of the methods with deep prompts.

    Attributes:
      num_prompts: learned tokens of each prompt.
      deep_prompt_depth: text blocks, of a tower of 12, with learned tokens, including the first, whose are
        the prompts themselves; 1: no deep prompts.
      num_deep_prompts: deep prompts per block, shared by all prompts of a learner; 0: none.
      deep_prompts_float16: round deep prompts to float16 in the forward pass, as the published code does.
    """

    num_prompts: int = within(12, 1)
    deep_prompt_depth: int = within(9, 1, TEXT_DEPTH)
    num_deep_prompts: int = within(4, 0)
    deep_prompts_float16: bool = False


def count_deep_blocks(backbone: Backbone, config: LearnerConfig) -> int:
    """Returns the number of text blocks with deep prompts, which the first block never has."""
    depth = scale_block(config.deep_prompt_depth, backbone.text_depth, of=TEXT_DEPTH)
    return depth - 1 if config.num_deep_prompts else 0


def check_deep_prompts(
    backbone: Backbone, config: LearnerConfig, *, room: int | None = None
) -> None:
    """Raises UserError if deep prompts would replace more than `room` tokens; None: the learned ones.

    Over a backbone with a start token, deep prompts replace tokens; otherwise they stand before them.
    """
    deep, room = config.num_deep_prompts, config.num_prompts if room is None else room
    if backbone.num_start_tokens and count_deep_blocks(backbone, config) and deep > room:
        raise UserError(
            f"Config key 'num_deep_prompts' is {deep}, but over {backbone.name} deep prompts replace tokens,"
            f" of which a prompt has {room}. Use at most {room}."
        )


def count_unused_projections(backbone: Backbone, config: LearnerConfig) -> int:
    """Returns the size of the linear layers, one per deep block, that the published code never uses."""
    return count_deep_blocks(backbone, config) * (backbone.text_width + 1) * UNUSED_WIDTH


def init_learner(key: Array, backbone: Backbone, config: LearnerConfig) -> Learner:
    """Returns a new learner."""
    width, num_deep = backbone.text_width, count_deep_blocks(backbone, config)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STATES, (config.num_prompts, width))
    if num_deep:
        shapes["deep"] = (num_deep, config.num_deep_prompts, width)
    return layers.init_tokens(jax.random.split(key, len(shapes)), shapes, std=config.init_std)


def encode_learners(
    backbone: Backbone,
    config: LearnerConfig,
    frozen: Params,
    words: Tokens,
    learners: Sequence[Learner],
) -> Float[Array, "t d"]:
    """Returns the raw text features of (normal, anomalous) of each learner, encoded in one batch.

    `words` are the fixed words of each text. Each learner has its own deep prompts, or none has any.

    Raises:
      UserError: if words and learned tokens are more than the text tower can take.
    """
    # Axis 0 runs over the states of the first learner, then over those of the next; so does that of `words`.
    context = jnp.stack([learner[state] for learner in learners for state in STATES])
    deep = None
    if "deep" in learners[0]:
        # Both states of a learner share its deep prompts.
        deep = jnp.stack([learner["deep"] for learner in learners for _ in STATES], axis=1)
        deep = layers.round_to_float16(deep) if config.deep_prompts_float16 else deep
    return prompts.encode_with_context(backbone, frozen, words, context, deep_prompts=deep)


def without_prefix(state: Arrays, *modules: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a PyTorch state dict by their names inside the authors' modules."""
    first = {name: name.partition(".") for name in state}
    return {
        rest if module in modules else name: np.asarray(state[name])
        for name, (module, _, rest) in first.items()
    }


def learner_from_torch(state: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
    """Reads a learner from a PyTorch state dict; arrays without effect are dropped.

    `prefix` precedes the names "ctx_pos", "ctx_neg" and "compound_prompts_text.0".

    Raises:
      KeyError: if one is missing.
    """
    found = {}
    for ours, theirs in zip(STATES, ("ctx_pos", "ctx_neg"), strict=True):
        tokens = np.asarray(state[f"{prefix}{theirs}"])
        # Stored as [1, 1, P, e], or as [1, K, A, e] with K prompts of a state.
        several = [count for count in tokens.shape[:-2] if count > 1]  # prompts of a state
        found[ours] = tokens.reshape(*several, *tokens.shape[-2:])
    name = f"{prefix}compound_prompts_text."
    count = sum(key.startswith(name) for key in state)
    deep = [np.asarray(state[f"{name}{i}"]) for i in range(count)]
    return found | ({"deep": np.stack(deep)} if deep else {})
