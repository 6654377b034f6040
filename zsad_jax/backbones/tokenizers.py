"""From texts to token ids, by the libraries that made the vocabularies."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from zsad_jax.errors import UserError


@functools.lru_cache(maxsize=4)
def _sentencepiece(path: str):
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The tokenizer {path} is not a sentencepiece model; delete it and fetch it again."
        ) from error


def tokenize_sentencepiece(
    texts: Sequence[str], *, path: str | pathlib.Path | None, length: int, vocabulary: int
) -> tuple[Int[np.ndarray, "t n"], Int[np.ndarray, "t n"]]:
    """TIPS's way: lower case, no begin or end token, right-padded with id 0, cut at `length`.

    Args:
      texts: sentences.
      path: the sentencepiece model; None is an error only here, where text is to be tokenised.
      length: tokens per text.
      vocabulary: rows of the model's embedding table, which every id has to fit.

    Returns:
      Token ids and paddings (1 = pad). Padding goes by count, so that a real token of id 0 stays valid.
    """
    if path is None:
        raise UserError(
            "Text has to be tokenised, but the backbone was loaded without a tokenizer; pass"
            " tokenizer=PATH, the sentencepiece model published beside the weights."
        )
    if not pathlib.Path(path).is_file():
        raise UserError(
            f"The tokenizer {path} does not exist; fetch it, or pass another tokenizer=PATH."
        )
    encoded = _sentencepiece(str(path)).encode([text.lower() for text in texts])
    ids = np.zeros((len(encoded), length), np.int32)
    paddings = np.ones((len(encoded), length), np.int32)
    for row, tokens in enumerate(encoded):
        tokens = tokens[:length]
        ids[row, : len(tokens)] = tokens
        paddings[row, : len(tokens)] = 0
    if ids.max(initial=0) >= vocabulary:
        raise UserError(
            f"The tokenizer {path} gives ids up to {ids.max()}, but the text tower knows {vocabulary} tokens;"
            " pass the tokenizer that was published beside the weights."
        )
    return ids, paddings
