import gzip
import html
import importlib
import itertools
import json
import pathlib
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.backbones import tokenizers
from zsad_jax.backbones.tokenizers import tokenize_bpe, tokenize_sentencepiece
from zsad_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "goldens" / "clip" / "tokenizer.json"
TIPS_NANO = ROOT / "zsad_jax" / "backbones" / "nano" / "tips-nano" / "tokenizer.model"
PUBLISHED = ROOT.parent / "shared" / "weights" / "tokenizers" / tokenizers.CLIP_MERGES

MERGES = [
    "t h", "th e</w>", "o b", "j e", "je c", "jec t</w>", "ob ject</w>", "l l</w>", "' ll</w>", "' s</w>",
    ". .", ".. .</w>", "c a", "ca f", "Ã ©</w>", "caf Ã©</w>", "a a", "aa a</w>", "aa aa", "| ></w>",
]  # fmt: skip
VOCABULARY = 512 + len(MERGES) + 2
START, END = VOCABULARY - 2, VOCABULARY - 1
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def token(symbols):
    """Returns the id of an entry of the tiny vocabulary, by the rules that place it."""
    entries = [merge.replace(" ", "") for merge in MERGES]
    if symbols in entries:
        return 512 + entries.index(symbols)
    letter = symbols.removesuffix("</w>")
    return (256 if letter != symbols else 0) + list(SYMBOLS.values()).index(letter)


def byte_letters():
    """Returns the symbol of each byte; printable bytes represent themselves and come first."""
    shown = [b for b in range(256) if 33 <= b <= 126 or (b >= 161 and b != 173)]
    rest = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(rest)}


SYMBOLS = byte_letters()


def simple_words(text):
    """Splits words character by character, without a regular expression; for texts without special tokens."""
    kinds = {"L": "letter", "N": "number", "Z": "space"}
    words, before = [], None
    while text:
        ending = re.match("'(?:s|t|re|ve|m|ll|d)", text)
        kind = kinds.get(unicodedata.category(text[0])[0], "other")
        if ending and before != "other":
            words.append(ending.group())
            text, before = text[ending.end() :], "ending"
            continue
        if kind == before and kind in ("letter", "other"):
            words[-1] += text[0]
        elif kind != "space":
            words.append(text[0])
        text, before = text[1:], kind
    return words


def simple_pairs(word, merges):
    """Merges pairs in the order of the file until no pair of the word is in it."""
    parts = [SYMBOLS[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    while True:
        pairs = list(itertools.pairwise(parts))
        best = next((merge for merge in merges if tuple(merge.split(" ")) in pairs), None)
        if best is None:
            return parts
        at = pairs.index(tuple(best.split(" ")))
        parts[at : at + 2] = [best.replace(" ", "")]


@pytest.fixture(scope="module")
def merge_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("merges") / "merges.txt"
    path.write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encode(merge_file):
    """Returns a function that encodes one text between start and end token with the tiny vocabulary."""

    def encode(text):
        ids, paddings = tokenize_bpe([text], path=merge_file, length=200, vocabulary=VOCABULARY)
        tokens = ids[0, : (paddings[0] == 0).sum()].tolist()
        assert tokens[0] == START
        assert tokens[-1] == END
        return tokens[1:-1]

    return encode


@pytest.fixture(scope="module")
def golden():
    rows = json.loads(GOLDEN.read_text())["rows"]
    assert len(rows) == 40
    return rows


def test_matches_golden(golden):
    if not PUBLISHED.is_file():
        pytest.skip("needs the published merge file")
    texts, longest = [row["text"] for row in golden], 1000
    ids, paddings = tokenize_bpe(texts, path=PUBLISHED, length=longest, vocabulary=49408)
    lengths = (paddings == 0).sum(axis=1)
    for row, tokens, length in zip(golden, ids, lengths, strict=True):
        # Longer texts are cut in the golden, and end with the end token.
        kept = 77 if length <= 77 else 76
        assert tokens[:kept].tolist() == row["padded77"][:kept]
        assert min(length, 77) - 1 == row["eot_index"]
    for word, number in tokenizers.CLIP_WORDS.items():
        only, _ = tokenize_bpe([word], path=PUBLISHED, length=3, vocabulary=49408)
        assert only.tolist() == [[49406, number, 49407]]


def test_vocabulary_order():
    assert tokenizers.byte_symbols() == SYMBOLS
    assert list(tokenizers.byte_symbols()) == list(SYMBOLS)
    assert [token(entry) for entry in ("!", "~", "¡", "ÿ", "Ā")] == [0, 93, 94, 187, 188]
    assert [token(entry) for entry in ("!</w>", "a</w>", "th", "|></w>")] == [256, 320, 512, 531]


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("the object", ["the</w>", "object</w>"]),
        ("  THE\n\tObject  ", ["the</w>", "object</w>"]),
        ("object.", ["object</w>", ".</w>"]),
        ("objects", ["ob", "jec", "t", "s</w>"]),
        ("th", ["t", "h</w>"]),
        ("aaaaa", ["aa", "aaa</w>"]),
        ("aaaaaa", ["aaaa", "a", "a</w>"]),
        ("the'll it's", ["the</w>", "'ll</w>", "i", "t</w>", "'s</w>"]),
        ("...", ["...</w>"]),
        ("a1b23", ["a</w>", "1</w>", "b</w>", "2</w>", "3</w>"]),
        ("caf\u00e9", ["caf\u00c3\u00a9</w>"]),
        ("cafe\u0301", ["caf\u00c3\u00a9</w>"]),
        ("caf\u00c3\u00a9", ["caf\u00c3\u00a9</w>"]),
        ("&amp;lt;the", ["<</w>", "the</w>"]),
        ("“the”", ['"</w>', "the</w>", '"</w>']),
        ("", []),
        (" \n ", []),
    ],
)
def test_encodes_texts_by_hand(text, entries, encode):
    assert encode(text) == [token(entry) for entry in entries]


def test_padding(merge_file):
    ids, paddings = tokenize_bpe(
        ["the", "the the the"], path=merge_file, length=5, vocabulary=VOCABULARY
    )
    the = token("the</w>")
    assert ids.dtype == paddings.dtype == np.int32
    assert ids.tolist() == [[START, the, END, 0, 0], [START, the, the, the, END]]
    assert paddings.tolist() == [[0, 0, 0, 1, 1], [0] * 5]


def test_rejects_text_that_is_too_long(merge_file):
    options = {"path": merge_file, "vocabulary": VOCABULARY}
    text = "the  the the object the object the the END"
    with pytest.raises(
        UserError, match=r"'the the the object the object the the' has 13 tokens, .* reads 5\."
    ):
        tokenize_bpe(["the", text], length=5, **options)
    assert tokenize_bpe([text], length=13, **options)[0][0, -1] == END


def test_rejects_text_that_is_too_long_for_tips():
    options = {"path": TIPS_NANO, "vocabulary": 2048}
    text = "a bad photo of a bent flange"
    ids, paddings = tokenize_sentencepiece([text], length=64, **options)
    needed = int((paddings == 0).sum())
    exact, _ = tokenize_sentencepiece([text], length=needed, **options)
    np.testing.assert_array_equal(exact, ids[:, :needed])
    with pytest.raises(UserError, match=rf"has {needed} tokens, .* reads {needed - 1}\. Shorten"):
        tokenize_sentencepiece([text], length=needed - 1, **options)


def test_encodes_empty_list(merge_file):
    ids, paddings = tokenize_bpe([], path=merge_file, length=5, vocabulary=VOCABULARY)
    assert ids.shape == paddings.shape == (0, 5)


def test_spelled_out_special_tokens(merge_file):
    """Checks that they are tokens only where they stand alone, and that the first end token ends the text."""
    ids, paddings = tokenize_bpe(
        ["<|startoftext|> the<|ENDOFTEXT|>the", "<<|endoftext|>"],
        path=merge_file,
        length=20,
        vocabulary=VOCABULARY,
    )
    the = token("the</w>")
    assert ids[0, :7].tolist() == [START, START, the, END, the, END, 0]
    assert paddings[0].tolist() == [0] * 4 + [1] * 16
    spelt = ["<", "<", "|</w>", *"endoftex", "t</w>", "|></w>"]
    assert ids[1, : len(spelt) + 2].tolist() == [START, *map(token, spelt), END]


@settings(deadline=None, max_examples=150)
@given(
    st.text(
        st.sampled_from([*"abcehjlmorstvde THE''...|>1290é&;ßñ日本のمر½²\n\t-_"]), max_size=40
    ).filter(lambda text: html.unescape(text) == text)
)
def test_matches_naive_implementation(merge_file, text):
    """Compares with a slow implementation, on composed texts that ftfy does not change."""
    import ftfy

    ids, paddings = tokenize_bpe([text], path=merge_file, length=400, vocabulary=VOCABULARY)
    words = simple_words(" ".join(ftfy.fix_text(text).split()).lower())
    expected = [token(part) for word in words for part in simple_pairs(word, MERGES)]
    assert ids[0, : (paddings == 0).sum()].tolist() == [START, *expected, END]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(*[st.text(LETTERS[:4], min_size=1, max_size=3)] * 2), max_size=12),
    st.text(LETTERS[:4], min_size=1, max_size=16),
)
def test_applies_random_merges_in_order(tmp_path_factory, candidates, word):
    """Draws merges whose parts exist before them, as in a trained file."""
    known, merges = {*LETTERS, *(letter + "</w>" for letter in LETTERS)}, []
    for first, second in [*candidates, *((a, b + "</w>") for a, b in candidates)]:
        if {first, second} <= known and first + second not in known:
            merges.append(f"{first} {second}")
            known.add(first + second)
    path = tmp_path_factory.mktemp("merges") / "merges.txt"
    path.write_text("\n".join(["#version: 0.2", *merges, ""]))
    ids, _ = tokenize_bpe([word], path=path, length=20, vocabulary=514 + len(merges))
    vocabulary = [*SYMBOLS.values(), *(letter + "</w>" for letter in SYMBOLS.values())]
    vocabulary += [merge.replace(" ", "") for merge in merges]
    expected = [vocabulary.index(part) for part in simple_pairs(word, merges)]
    assert ids[0, 1 : len(expected) + 1].tolist() == expected


@pytest.mark.parametrize("compressed", [True, False])
def test_reads_both_file_formats(compressed, merge_file, tmp_path, encode):
    path = tmp_path / "merges"
    raw = merge_file.read_bytes().replace(b"\n", b"\n" if compressed else b"\r\n")
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    ids, _ = tokenize_bpe(["the object"], path=path, length=4, vocabulary=VOCABULARY)
    assert ids[0, 1:3].tolist() == encode("the object")


def test_ignores_extra_merges_of_published_file(tmp_path):
    """Uses the published file, which lists more merges than CLIP's vocabulary uses."""
    pairs = [f"{first} {second}" for first in SYMBOLS.values() for second in SYMBOLS.values()]
    path = tmp_path / "long.gz"
    path.write_bytes(gzip.compress("\n".join(["version", *pairs]).encode(), 1))
    ids, _ = tokenize_bpe(["!!!"], path=path, length=5, vocabulary=49408)
    assert ids.tolist() == [[49406, 512, 256, 49407, 0]]
    with pytest.raises(UserError, match=r"65536 merges.* 1000 tokens need 486"):
        tokenize_bpe(["!!!"], path=path, length=5, vocabulary=1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("v\nt h\n", "has 1 merges, but .* need 20"),
        ("\n".join(["v", *MERGES, "x y"]), "has 21 merges"),
        ("\n".join(["v", *MERGES[:-1], "x"]), "not a merge file"),
        ("\n".join(["v", *MERGES[:-1], "xy z"]), "'xy'.* not one of its tokens"),
        (b"\x1f\x8bnot really", "not a merge file"),
        (gzip.compress(b"cut off" * 50, mtime=0)[:-12], "not a merge file"),
        (b"\xff\xfe\n", "not a merge file"),
        (None, "does not exist"),
    ],
)
def test_rejects_invalid_files(content, message, tmp_path):
    path = tmp_path / "merges.txt"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        tokenize_bpe(["the"], path=path, length=5, vocabulary=VOCABULARY)


def test_learned_prompts_need_no_file(golden):
    known = [row for row in golden if row["text"] in ("object", "damaged object.")]
    texts = ["X X n object.", "A damaged  object with all parts.", "the flawless part"]
    ids, paddings = tokenize_bpe(
        [*texts, *(row["text"] for row in known)], path=None, length=77, vocabulary=49408
    )
    assert ids[:3, :9].tolist() == [
        [49406, 343, 343, 333, 14115, 269, 49407, 0, 0],
        [49406, 320, 13568, 14115, 593, 615, 5149, 269, 49407],
        [49406, 518, 15531, 1551, 49407, 0, 0, 0, 0],
    ]
    assert (paddings[:3] == 0).sum(1).tolist() == [7, 9, 5]
    np.testing.assert_array_equal(ids[3:], [row["padded77"] for row in known])
    assert len(known) == 2


def test_other_words_require_the_file():
    with pytest.raises(
        UserError, match=r"'bottle'.*tokenizer=PATH.*bpe_simple_vocab_16e6\.txt\.gz"
    ):
        tokenize_bpe(["a damaged bottle"], path=None, length=77, vocabulary=49408)
    with pytest.raises(UserError, match="tokenizer=PATH"):
        tokenize_bpe(["object"], path=None, length=77, vocabulary=VOCABULARY)


def test_file_precedes_known_words(merge_file):
    ids, _ = tokenize_bpe(["object"], path=merge_file, length=3, vocabulary=VOCABULARY)
    assert ids.tolist() == [[START, token("object</w>"), END]]


def test_trained_merges_shorten_sentences(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    captions = importlib.import_module("nano_captions")
    whole = captions.corpus
    monkeypatch.setattr(captions, "corpus", lambda seed: whole(seed, 1500))
    raw = captions.train_merges(3, 400)
    assert raw == captions.train_merges(3, 400) != captions.train_merges(4, 400)
    path = tmp_path / tokenizers.CLIP_MERGES
    path.write_bytes(raw)
    header, *merges = gzip.decompress(raw).decode().splitlines()
    assert "version" in header
    assert len(merges) == 400
    sentences = list(captions.corpus(5))[:200]
    _, paddings = tokenize_bpe(sentences, path=path, length=77, vocabulary=914)
    tokens = (paddings == 0).sum() - 2 * len(sentences)
    words = sum(len(tokenizers.split_words(sentence)) for sentence in sentences)
    assert tokens < 1.6 * words


@pytest.mark.parity
def test_matches_transformers(merge_file, tmp_path):
    transformers = pytest.importorskip("transformers")
    symbols = list(SYMBOLS.values())
    entries = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    entries += [merge.replace(" ", "") for merge in MERGES] + list(tokenizers.SPECIAL_TOKENS)
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    theirs = transformers.CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in MERGES]
    )
    texts = [
        "The object's café",
        "a1b23, 3.14",
        "they'll ...",
        "日本語 мир",
        "aaaaaaa tht 'll",
        "!",
    ]
    ids, paddings = tokenize_bpe(texts, path=merge_file, length=60, vocabulary=VOCABULARY)
    for row, text in enumerate(texts):
        assert ids[row, : (paddings[row] == 0).sum()].tolist() == theirs(text)["input_ids"]


@pytest.mark.parametrize("vocabulary", [2047, 2048 + tokenizers.MAX_UNUSED])
def test_rejects_sentencepiece_models_of_other_sizes(vocabulary):
    """Checks one token too many, and fewer than a table of the model's own would have."""
    options = {"path": TIPS_NANO, "length": 8}
    ids, _ = tokenize_sentencepiece(["a photo"], **options, vocabulary=2050)
    assert ids.max() < 2048
    with pytest.raises(UserError, match=f"has 2048 tokens, but the text tower has {vocabulary}"):
        tokenize_sentencepiece(["a photo"], **options, vocabulary=vocabulary)
