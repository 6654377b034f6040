"""From texts to token ids, by the libraries that made the vocabularies."""

import functools
import gzip
import html
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from zsad_jax.utils.errors import UserError

PathLike = str | pathlib.Path

# CLIP's vocabulary: every byte, every byte as the end of a word, the merges, the start and the end token.
END_OF_WORD = "</w>"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
CLIP_VOCABULARY = 49_408
# What the learned prompts are made of, so that they need no merge file.
CLIP_WORDS = {
    "x": 343, "n": 333, "a": 320, "object": 14115, "damaged": 13568, ".": 269, "with": 593, "all": 615,
    "parts": 5149, "flawless": 15531, "the": 518, "part": 1551, "good": 886,
}  # fmt: skip
WORDS_SHOWN = 8  # of a text, in errors
# Runs of letters, single digits, runs of anything else; the special tokens and English endings go first.
WORDS = (
    r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)


@functools.lru_cache(maxsize=4)
def _sentencepiece(path: str):
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The tokenizer {path} is not a sentencepiece model; delete it and fetch it again."
        ) from error


def _check_exists(path: PathLike) -> None:
    if not pathlib.Path(path).is_file():
        raise UserError(
            f"The tokenizer {path} does not exist; fetch it, or pass another tokenizer=PATH."
        )


def tokenize_sentencepiece(
    texts: Sequence[str], *, path: PathLike | None, length: int, vocabulary: int
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
    _check_exists(path)
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


def tokenize_bpe(
    texts: Sequence[str],
    *,
    path: PathLike | None,
    length: int,
    vocabulary: int,
    truncate: bool = False,
) -> tuple[Int[np.ndarray, "t n"], Int[np.ndarray, "t n"]]:
    """CLIP's way: byte-level pairs between a start and an end token, right-padded with id 0.

    Where a text itself spells an end token, its first one counts, as the text tower pools there.

    Args:
      texts: sentences.
      path: the merge file: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or Hugging Face's `merges.txt`. None: only
        the words of the learned prompts are known, and only in CLIP's own vocabulary.
      length: tokens per text, with start and end.
      vocabulary: rows of the model's embedding table; all but 514 are merges.
      truncate: a text that is too long is cut, and its last id is the end token.

    Returns:
      Token ids and paddings (1 = pad, all that is behind the end token).

    Raises:
      UserError: no merge file where one is needed, or one that does not fit the vocabulary; or a text that is
        too long and may not be cut.
    """
    if path is None and vocabulary != CLIP_VOCABULARY:
        raise UserError(
            "Text has to be tokenised, but the backbone was loaded without a tokenizer; pass"
            " tokenizer=PATH, the merge file published beside the weights."
        )
    if path is not None:
        _check_exists(path)
    spell = _spell_clip_word if path is None else _byte_pairs(str(path), vocabulary)
    start, end = vocabulary - 2, vocabulary - 1
    special = dict(zip(SPECIAL_TOKENS, ([start], [end]), strict=True))
    ids = np.zeros((len(texts), length), np.int32)
    paddings = np.ones((len(texts), length), np.int32)
    for row, text in enumerate(texts):
        spelled = [
            token for word in split_words(text) for token in special.get(word) or spell(word)
        ]
        tokens = [start, *spelled, end]
        if len(tokens) > length:
            if not truncate:
                first = " ".join(text.split()[:WORDS_SHOWN])
                raise UserError(
                    f"The text that begins with {first!r} has {len(tokens)} tokens, start and end included,"
                    f" where the text tower reads {length}; shorten it."
                )
            tokens = [*tokens[: length - 1], end]
        ids[row, : len(tokens)] = tokens
        paddings[row, : tokens.index(end) + 1] = 0
    return ids, paddings


def split_words(text: str) -> list[str]:
    """A text's words as CLIP sees them: mended, in lower case, without spaces.

    Args:
      text: any text; wrongly decoded letters are repaired and HTML entities resolved (twice).

    Returns:
      Runs of letters, single digits, runs of other signs, and English endings ("'s").
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return [word for word, _ in _splitter().pre_tokenize_str(" ".join(text.split()).lower())]


def byte_symbols() -> dict[int, str]:
    """The visible letter that stands for each byte, in the order of the vocabulary."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + index) for index, byte in enumerate(hidden)
    }


def _spell_clip_word(word: str) -> list[int]:
    if word not in CLIP_WORDS:
        raise UserError(
            f"The word {word!r} cannot be tokenised without the vocabulary; pass tokenizer=PATH, the file"
            f" {CLIP_MERGES} published beside the weights."
        )
    return [CLIP_WORDS[word]]


@functools.lru_cache(maxsize=1)
def _splitter():
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)


@functools.lru_cache(maxsize=4)
def _byte_pairs(path: str, vocabulary: int) -> Callable[[str], list[int]]:
    """From a word to its ids, by the merges of a file."""
    from tokenizers import models

    symbols = byte_symbols()
    merges = _read_merges(path, vocabulary)
    entries = [*symbols.values(), *(symbol + END_OF_WORD for symbol in symbols.values())]
    entries += [first + second for first, second in merges]
    ranks = {entry: rank for rank, entry in enumerate(entries)}
    unknown = [part for merge in merges for part in merge if part not in ranks]
    if unknown:
        raise UserError(
            f"The tokenizer {path} merges {unknown[0]!r}, which is no token of it; fetch it again."
        )
    model = models.BPE(ranks, merges, end_of_word_suffix=END_OF_WORD)

    def spell(word: str) -> list[int]:
        letters = "".join(symbols[byte] for byte in word.encode())
        return [token.id for token in model.tokenize(letters)]

    return spell


def _read_merges(path: str, vocabulary: int) -> list[tuple[str, str]]:
    """The merges of a file, first one first; the published file lists more than CLIP uses."""
    try:
        raw = pathlib.Path(path).read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"The tokenizer {path} is not a merge file; delete it and fetch it again."
        ) from error
    needed = vocabulary - 2 * 256 - len(SPECIAL_TOKENS)
    lines = text.strip().split("\n")[1:]  # the first line names the version
    if len(lines) < needed or (len(lines) > needed and vocabulary != CLIP_VOCABULARY):
        raise UserError(
            f"The tokenizer {path} has {len(lines)} merges, but the text tower's {vocabulary} tokens need"
            f" {needed}; pass the tokenizer that was published beside the weights."
        )
    pairs = [line.split() for line in lines[:needed]]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(
            f"The tokenizer {path} is not a merge file, which has two parts in each line; fetch it again."
        )
    return [(first, second) for first, second in pairs]
