"""Tokenizers of TIPS and SigLIP (sentencepiece) and CLIP (byte pairs)."""

import functools
import gzip
import html
import itertools
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from zsad_jax.backbones.base import Tokens
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.files import PathLike

# CLIP's vocabulary: every byte, every byte as the end of a word, the merges, the start and the end token.
END_OF_WORD = "</w>"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
MAX_MERGES = 2**26  # bytes; CLIP's own are 3 million
CLIP_VOCABULARY = 49_408
# The words of the learned prompts, so that these need no merge file.
CLIP_WORDS = {
    "x": 343, "n": 333, "a": 320, "object": 14115, "damaged": 13568, ".": 269, "with": 593, "all": 615,
    "parts": 5149, "flawless": 15531, "the": 518, "part": 1551, "good": 886,
}  # fmt: skip
WORDS_SHOWN = 8  # of a text, in errors
MAX_UNUSED = 1024  # rows of an embedding table without a token, which make its size a round number
# Runs of letters, single digits, runs of anything else; the special tokens and English endings go first.
WORDS = (
    r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)


class TokenizeWithFn(Protocol):
    """A function that tokenizes with the file of a tokenizer."""

    def __call__(
        self, texts: Sequence[str], *, path: PathLike | None, length: int, vocabulary: int
    ) -> Tokens: ...


def tokenize_sentencepiece(
    texts: Sequence[str],
    *,
    path: PathLike | None,
    length: int,
    vocabulary: int,
    end: Sequence[int] = (),
    pad: int = 0,
) -> Tokens:
    """Tokenizes for TIPS and SigLIP: lower case, no start token.

    The published code cuts texts that are too long; here they are rejected, since they could become equal.

    Args:
      texts: sentences.
      path: the sentencepiece model. None is an error only here, where a text is tokenized.
      length: tokens per text; shorter texts are padded.
      vocabulary: rows of the model's embedding table, of which nearly all have a token.
      end: ids after each text.
      pad: id of padding.

    Raises:
      UserError: the model is missing, is not readable or does not fit the vocabulary; or a text is too long.
    """
    model = _sentencepiece(_existing(path, "the sentencepiece model"))
    if not 0 <= vocabulary - model.vocab_size() < MAX_UNUSED:
        raise UserError(
            f"The tokenizer {path} has {model.vocab_size()} tokens, but the text tower has {vocabulary}."
            " Pass the tokenizer that was published with the weights."
        )
    encoded = [[*model.encode(text.lower()), *end] for text in texts]
    for text, tokens in zip(texts, encoded, strict=True):
        _check_length(text, len(tokens), length)
    # The published code takes every id 0 for padding.
    return _pad(encoded, length, pad)


def tokenize_bpe(
    texts: Sequence[str], *, path: PathLike | None, length: int, vocabulary: int
) -> Tokens:
    """Tokenizes for CLIP: byte pairs between a start and an end token.

    Where a text itself contains an end token, its first one counts, because the text tower pools there.

    Args:
      texts: sentences.
      path: the merge file: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or Hugging Face's `merges.txt`. None: only
        the words of the learned prompts are known, and only in CLIP's own vocabulary.
      length: tokens per text, including start and end; shorter texts are padded with id 0.
      vocabulary: rows of the model's embedding table; all but 514 are merges.

    Raises:
      UserError: a text is too long, or the merge file is missing or does not fit the vocabulary.
    """
    spell: Callable[[str], list[int]] = _spell_clip_word
    if path is not None or vocabulary != CLIP_VOCABULARY:
        spell = _byte_pairs(_existing(path, "the merge file"), vocabulary)
    start, end = vocabulary - 2, vocabulary - 1
    special = dict(zip(SPECIAL_TOKENS, ([start], [end]), strict=True))
    rows = []
    for text in texts:
        # As in OpenAI's tokenizer, a special token in the text is one; open_clip spells it out.
        words = [special.get(word) or spell(word) for word in split_words(text)]
        tokens = [start, *itertools.chain.from_iterable(words), end]
        _check_length(text, len(tokens), length)
        rows.append(tokens)
    ids, paddings = _pad(rows, length)
    for row, tokens in enumerate(rows):
        # Not always the last one, where a text contains an end token itself.
        paddings[row, tokens.index(end) + 1 :] = 1
    return ids, paddings


def _check_length(text: str, found: int, length: int) -> None:
    if found > length:
        first = " ".join(text.split()[:WORDS_SHOWN])
        raise UserError(
            f"The text that begins with {first!r} has {found} tokens, but the text tower reads {length}."
            " Shorten it."
        )


def _pad(rows: Sequence[Sequence[int]], length: int, pad: int = 0) -> Tokens:
    """Pads by count, so that a real token of the id `pad` is not padding."""
    ids = np.full((len(rows), length), pad, np.int32)
    paddings = np.ones((len(rows), length), np.int32)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        paddings[row, : len(tokens)] = 0
    return ids, paddings


def _existing(path: PathLike | None, file: str) -> str:
    if path is None:
        raise UserError(
            "Text cannot be tokenized, because the backbone was loaded without a tokenizer. Pass"
            f" tokenizer=PATH, {file} published with the weights."
        )
    if not pathlib.Path(path).is_file():
        raise UserError(
            f"The tokenizer {path} does not exist. Fetch it, or pass another tokenizer=PATH."
        )
    return str(path)


@functools.lru_cache(maxsize=4)
def _sentencepiece(path: str) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The tokenizer {path} is not a sentencepiece model. Delete it and fetch it again."
        ) from error


def split_words(text: str) -> list[str]:
    """Returns the words of a text for CLIP: lower case, no spaces.

    Wrongly decoded letters are repaired and HTML entities resolved (twice). A word is a run of letters, a
    digit, a run of other characters, or an English ending ("'s").
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return [word for word, _ in _splitter().pre_tokenize_str(" ".join(text.split()).lower())]


def byte_symbols() -> dict[int, str]:
    """Returns the visible character for each byte, in the order of the vocabulary."""
    # Visible bytes come first and stand for themselves; the others follow, as characters from U+0100 on.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + index) for index, byte in enumerate(hidden)
    }


def _spell_clip_word(word: str) -> list[int]:
    if word not in CLIP_WORDS:
        raise UserError(
            f"The word {word!r} cannot be tokenized without the vocabulary. Pass tokenizer=PATH, the file"
            f" {CLIP_MERGES} published with the weights."
        )
    return [CLIP_WORDS[word]]


@functools.lru_cache(maxsize=1)
def _splitter() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)


@functools.lru_cache(maxsize=4)
def _byte_pairs(path: str, vocabulary: int) -> Callable[[str], list[int]]:
    """Returns a function from a word to its ids, with the merges of a file."""
    from tokenizers import models

    symbols = byte_symbols()
    merges = _read_merges(path, vocabulary)
    entries = [*symbols.values(), *(symbol + END_OF_WORD for symbol in symbols.values())]
    entries += [first + second for first, second in merges]
    ranks = {entry: rank for rank, entry in enumerate(entries)}
    # The library would raise an error that does not name the file.
    unknown = [part for merge in merges for part in merge if part not in ranks]
    if unknown:
        raise UserError(
            f"The tokenizer {path} merges {unknown[0]!r}, which is not one of its tokens. Fetch it again."
        )
    model = models.BPE(ranks, merges, end_of_word_suffix=END_OF_WORD)

    def spell(word: str) -> list[int]:
        letters = "".join(symbols[byte] for byte in word.encode())
        return [token.id for token in model.tokenize(letters)]

    return spell


def _read_merges(path: str, vocabulary: int) -> list[tuple[str, str]]:
    """Reads the merges in order; the published file lists more than CLIP uses."""
    needed = vocabulary - 2 * 256 - len(SPECIAL_TOKENS)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:  # a small file may hold gigabytes
            lines = (
                file.read(MAX_MERGES).decode().strip().split("\n")[1:]
            )  # the first names the version
        pairs = [(first, second) for first, second in map(str.split, lines[:needed])]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"The tokenizer {path} is not a merge file. Delete it and fetch it again."
        ) from error
    # Only CLIP's own file has more merges than its vocabulary; elsewhere a surplus shows the wrong file.
    if len(lines) < needed or (len(lines) > needed and vocabulary != CLIP_VOCABULARY):
        raise UserError(
            f"The tokenizer {path} has {len(lines)} merges, but the text tower's {vocabulary} tokens need"
            f" {needed}. Pass the tokenizer that was published with the weights."
        )
    return pairs
