"""Sentences about normal and anomalous objects, learned tokens in them, and their text features."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.base import AnyArray, Backbone, Params, Tokens
from zsad_jax.data.protocols import clean_class_name
from zsad_jax.methods.shared.config import MethodConfig, check_texts
from zsad_jax.methods.shared.similarity import normalize
from zsad_jax.utils.errors import UserError

SENTENCE_NORM_FLOOR = 1e-3  # sentences are divided by max(norm, 1e-3), as the published code does
SENTENCES_PER_CHUNK = 256  # bounds the memory of encoding many categories
# From token ids and paddings to text features.
EncodeTokensFn = Callable[[Int[AnyArray, "t n"], Int[AnyArray, "t n"]], Float[Array, "t d"]]


@dataclasses.dataclass(frozen=True)
class PromptFamily:
    """Two ensembles of states and the templates around them.

    Attributes:
      normal, anomalous: states; `{}` is the class name.
      templates: sentences; `{}` is the filled state.
      unit: whether the features of sentences are normalized before their mean.
    """

    normal: tuple[str, ...]
    anomalous: tuple[str, ...]
    templates: tuple[str, ...]
    unit: bool = True

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """Returns the normal and the anomalous sentences of a class, the templates of a state together."""
        return self.describe(clean_class_name(class_name))

    def describe(self, words: str) -> tuple[list[str], list[str]]:
        """Returns the sentences with these words as they are in place of the class name."""

        def fill(states: Sequence[str]) -> list[str]:
            named = [state.replace("{}", words) for state in states]
            return [text.replace("{}", state) for state in named for text in self.templates]

        return fill(self.normal), fill(self.anomalous)


def texts(joined: str) -> tuple[str, ...]:
    """Returns texts that are joined by ", "."""
    return tuple(joined.split(", "))


# The sentences of TIPSomaly (arXiv 2602.03594), in the order of the published code.
PROMPT_FAMILIES: dict[str, PromptFamily] = {
    "industrial": PromptFamily(
        normal=texts(
            "{}, flawless {}, perfect {}, unblemished {}, {} without flaw, {} without defect,"
            " {} without damage"
        ),
        anomalous=texts("damaged {}, broken {}, {} with flaw, {} with defect, {} with damage"),
        templates=texts(
            "a bad photo of a {}., a low resolution photo of the {}., a bad photo of the {}.,"
            " a cropped photo of the {}."
        ),
    ),
    "medical": PromptFamily(
        normal=texts(
            "normal {}, intact {}, {} with uniform structure, {} showing clear tissue,"
            " {} with normal anatomy, {} showing no distortion, {} with symmetric appearance,"
            " {} looking normal, {} with even texture, {} with regular shape"
        ),
        anomalous=texts(
            "abnormal {}, {} with spot, {} with abnormality, diseased {}, {} showing distortion,"
            " {} with irregular area, {} with irregular shape, {} with uneven texture"
        ),
        templates=texts(
            "a medical image of a {}., a medical image of the {}., a diagnostic scan of a {}.,"
            " a diagnostic scan of the {}., a slice showing a {}., a slice showing the {}.,"
            " a scan of the {}., a clinical brain scan of a {}."
        ),
    ),
    # The class name is still inserted: agnostic only where the class is called "object".
    "object_agnostic": PromptFamily(normal=("{}",), anomalous=("damaged {}",), templates=("{}",)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencesConfig(MethodConfig):
    """Options of methods that compare with sentences about states of an object.

    Attributes:
      normal_states, abnormal_states: `{}` is the class name.
      templates: sentences around a state, whose features are averaged; `{}` is the filled state.
    """

    normal_states: tuple[str, ...] = PROMPT_FAMILIES["industrial"].normal
    abnormal_states: tuple[str, ...] = PROMPT_FAMILIES["industrial"].anomalous
    templates: tuple[str, ...] = PROMPT_FAMILIES["industrial"].templates

    def __post_init__(self) -> None:
        super().__post_init__()
        check_texts(self, "normal_states", "abnormal_states", "templates", place="{}")

    def family(self, *, unit: bool = True) -> PromptFamily:
        """Returns the two ensembles of states, and the templates around them."""
        return PromptFamily(self.normal_states, self.abnormal_states, self.templates, unit)


def tokenize(backbone: Backbone, texts: Sequence[str]) -> Tokens:
    """Returns token ids and paddings (1 = pad), cut at the longest real text.

    Positions after the last real token change no result, in causal towers and in masked ones; a tower that
    reads its padding (SigLIP) adds it again.
    """
    ids, paddings = (np.asarray(array) for array in backbone.tokenize(texts))
    longest = max(int((paddings == 0).sum(axis=1).max()), 1)
    return ids[:, :longest], paddings[:, :longest]


def insert_tokens(
    words: Float[Array, "t n e"],
    paddings: Int[np.ndarray, "t n"],
    learned: Float[Array, "t p e"],
    *,
    at: int | Sequence[int],
    length: int | None = None,
) -> tuple[Float[Array, "t m e"], Int[np.ndarray, "t m"]]:
    """Inserts learned tokens into the words of texts; returns embeddings and paddings (1 = pad).

    Args:
      words, paddings: of the texts; paddings are on the host.
      learned: of each text.
      at: position of the first learned token; one for all texts, or one each.
      length: maximum number of tokens of a text; the rest is cut off. None: no limit.
    """
    t, n, _ = words.shape
    p = learned.shape[1]
    # Positions are computed on the host, so that a jitted caller traces the embeddings alone.
    starts = np.broadcast_to(np.asarray(at), (t,))[:, None]
    place = np.arange(n + p)[None]
    # Row r of the result comes from row order[r] of [words, learned].
    order = np.where(
        place < starts, place, np.where(place < starts + p, n + place - starts, place - p)
    )
    order = order[:, :length]
    both = np.concatenate([paddings, np.zeros((t, p), paddings.dtype)], axis=1)
    if (starts == starts[0]).all():  # slices are cheaper than looking up rows
        first = int(starts[0, 0])
        rows = jnp.concatenate([words[:, :first], learned, words[:, first:]], axis=1)[:, :length]
    else:
        rows = jnp.concatenate([words, learned.astype(words.dtype)], axis=1)
        rows = jnp.take_along_axis(rows, order[..., None], axis=1)
    return rows, np.take_along_axis(both, order, axis=1)


def encode_with_context(
    backbone: Backbone,
    frozen: Params,
    tokens: Tokens,
    context: Float[Array, "t p e"],
    *,
    deep_prompts: Float[Array, "deep #t q e"] | None = None,
) -> Float[Array, "t d"]:
    """Returns text features of fixed words (`tokens`) after learned ones (`context`).

    Learned tokens follow any start token. For `deep_prompts` see `Backbone.encode_prompts`.

    Raises:
      UserError: if words and learned tokens are more than the text tower can take.
    """
    ids, paddings = tokens
    words = backbone.embed_tokens(frozen, ids)
    check_length(backbone, paddings, context.shape[1])
    embeddings, paddings = insert_tokens(words, paddings, context, at=backbone.num_start_tokens)
    return backbone.encode_prompts(frozen, embeddings, paddings, deep_prompts=deep_prompts)


def check_length(backbone: Backbone, paddings: Int[np.ndarray, "t n"], learned: int) -> None:
    """Raises UserError if the longest text and `learned` more tokens exceed the text tower."""
    longest = int((np.asarray(paddings) == 0).sum(axis=1).max()) + learned
    if longest > backbone.text_length:
        raise UserError(
            f"A prompt of {longest} tokens, {learned} of them learned, is longer than the"
            f" {backbone.text_length} that {backbone.name} reads. Use fewer learned tokens or a shorter"
            " class name."
        )


def ensemble(
    embeddings: Float[Array, "t d"],
    groups: Int[np.ndarray, " t"],
    num_groups: int,
    *,
    unit: bool = True,
) -> Float[Array, "groups d"]:
    """Returns one prototype per group of texts: the normalized mean of the normalized embeddings.

    g = n(sum_j e_j / max(|e_j|, 1e-3)) over the texts j of a group, with n(x) = x / |x|.
    `groups` has the index of the group of each text; every group has at least one text. For `unit` see
    `PromptFamily`.
    """
    if unit:
        embeddings = normalize(embeddings, floor=SENTENCE_NORM_FLOOR)
    # The sum serves as the mean, since the result is normalized.
    return normalize(jax.ops.segment_sum(embeddings, jnp.asarray(groups), num_segments=num_groups))


def encode_sentences(
    backbone: Backbone,
    frozen: Params,
    sentences: Sequence[str],
    *,
    encode: EncodeTokensFn | None = None,
) -> Float[Array, "t d"]:
    """Returns the text features of sentences, by `encode` in place of the backbone's own where it is given.

    Each distinct sentence is encoded once, in chunks that bound the memory.
    """
    encode = encode or functools.partial(backbone.encode_text, frozen)
    texts = list(dict.fromkeys(sentences))
    number = {text: index for index, text in enumerate(texts)}
    ids, paddings = tokenize(backbone, texts)
    # Equal chunks, so that one program encodes all of them.
    chunks = -(-len(texts) // SENTENCES_PER_CHUNK)
    size = -(-len(texts) // chunks)
    filled = np.resize(np.arange(len(texts)), (chunks, size))  # the last repeats the first
    embeddings: Array = jax.lax.map(lambda x: encode(*x), (ids[filled], paddings[filled]))
    rows = np.array([number[text] for text in sentences])
    return embeddings.reshape(chunks * size, -1)[rows]


def encode_ensembles(
    backbone: Backbone,
    frozen: Params,
    ensembles: Sequence[Sequence[str]],
    *,
    unit: bool = True,
    encode: EncodeTokensFn | None = None,
) -> Float[Array, "ensembles d"]:
    """Returns a unit-norm prototype for each ensemble of sentences; for `encode` see `encode_sentences`."""
    texts = [text for one in ensembles for text in one]
    embeddings = encode_sentences(backbone, frozen, texts, encode=encode)
    groups = np.repeat(np.arange(len(ensembles)), [len(sentences) for sentences in ensembles])
    return ensemble(embeddings, groups, len(ensembles), unit=unit)


def encode_pairs(
    backbone: Backbone, frozen: Params, family: PromptFamily, class_names: Sequence[str]
) -> Float[Array, "classes 2 d"]:
    """Returns the (normal, anomalous) prototypes of each class."""
    ensembles = [sentences for name in class_names for sentences in family.sentences(name)]
    pairs = encode_ensembles(backbone, frozen, ensembles, unit=family.unit)
    return pairs.reshape(len(class_names), 2, -1)
