"""Tests of prompt sentences and ensembles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.data.protocols import clean_class_name
from zsad_jax.methods.shared import prompts
from zsad_jax.methods.shared.prompts import (
    PROMPT_FAMILIES,
    PromptFamily,
    encode_ensembles,
    encode_pairs,
)


@pytest.mark.parametrize("family", PROMPT_FAMILIES)
@pytest.mark.parametrize("name", ["round_plate", "fine-mesh", "object"])
def test_sentences_match_published_ones_in_order(prompts_golden, family, name):
    normal, anomalous = PROMPT_FAMILIES[family].sentences(name)
    stem = f"{family}/{name.replace('-', '_')}"
    assert normal == prompts_golden[f"{stem}/normal/sentences"].tolist()
    assert anomalous == prompts_golden[f"{stem}/abnormal/sentences"].tolist()


def test_class_names_are_written_as_words():
    assert clean_class_name("metal_nut") == "metal nut"
    assert clean_class_name("cvc-colon_db") == "cvc colon db"
    assert clean_class_name("object") == "object"


def test_keeps_braces_in_class_name():
    normal, _ = PROMPT_FAMILIES["industrial"].sentences("part {7}")
    assert normal[0] == "a bad photo of a part {7}."


def test_keeps_other_braces_in_sentence():
    """Replaces only `{}`, wherever it occurs."""
    family = PromptFamily(("a {} {x}",), ("no {}",), ("one {} {0}.", "{} and {}"))
    normal, anomalous = family.sentences("nut")
    assert normal == ["one a nut {x} {0}.", "a nut {x} and a nut {x}"]
    assert anomalous == ["one no nut {0}.", "no nut and no nut"]


def test_truncates_texts_at_the_longest(backbone):
    ids, paddings = prompts.tokenize(backbone, ["object", "a bad photo of a object."])
    assert ids.shape == paddings.shape
    assert (paddings == 0).sum(axis=1).max() == ids.shape[1] < backbone.text_length


def test_truncation_does_not_change_features(backbone):
    texts = ["object", "a bad photo of a object."]
    encode = jax.jit(backbone.encode_text)
    full = encode(backbone.params, *backbone.tokenize(texts))
    cut = encode(backbone.params, *prompts.tokenize(backbone, texts))
    np.testing.assert_allclose(cut, full, rtol=0, atol=1e-5 * jnp.abs(full).max())


def test_encodes_each_sentence_once_in_chunks(backbone, monkeypatch):
    seen, shapes = [], []

    def tokenize(texts):
        seen.append(list(texts))
        return backbone.tokenize(texts)

    def encode_text(params, ids, paddings):
        shapes.append(ids.shape[0])
        return backbone.encode_text(params, ids, paddings)

    watched = dataclasses.replace(
        backbone,
        text=dataclasses.replace(backbone.text, tokenize=tokenize, encode_text=encode_text),
    )
    names = ["object", "round_plate", "object", "fine-mesh"]
    family = PROMPT_FAMILIES["industrial"]
    whole = encode_pairs(watched, backbone.params, family, names)
    assert len(seen[0]) == len(set(seen[0])) == 3 * 48
    monkeypatch.setattr(prompts, "SENTENCES_PER_CHUNK", 50)
    chunked = encode_pairs(watched, backbone.params, family, names)
    assert max(shapes) == 144
    assert min(shapes) == 48
    assert whole.shape == (4, 2, 32)
    np.testing.assert_allclose(chunked, whole, atol=1e-6)
    np.testing.assert_allclose(whole[0], whole[2], atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(whole, axis=-1), 1, rtol=1e-5)


def test_ensemble_is_normalized_mean_of_normalized_texts(backbone):
    embeddings = np.array([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]], np.float32)
    text = dataclasses.replace(
        backbone.text,
        tokenize=lambda texts: (
            np.array([[int(text)] for text in texts]),
            np.zeros((len(texts), 1), int),
        ),
        encode_text=lambda params, ids, paddings: jnp.asarray(embeddings)[ids[:, 0]],
    )
    flat = dataclasses.replace(backbone, text=text)
    pair = encode_ensembles(flat, {}, [["0", "1"], ["2"], ["1", "1", "2"]])
    first = np.array([0.6, 1.8]) / np.hypot(0.6, 1.8)
    last = np.array([1.0, 2.0]) / np.hypot(1.0, 2.0)
    np.testing.assert_allclose(pair, [first, [1, 0], last], rtol=1e-6)
