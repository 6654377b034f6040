"""Tests of CLIP and CLIP-AC against closed forms over the features of the tiny CLIP."""

import dataclasses

import jax
import numpy as np
import pytest

from zsad_jax.methods import make_method
from zsad_jax.methods.clip import IMAGENET_TEMPLATES
from zsad_jax.utils.errors import UserError

CLASSES = ("metal_nut", "grid")


@pytest.fixture(scope="module")
def clip(load_golden_clip):
    """Returns the tiny CLIP, with a tokenizer that records its inputs and knows some ids."""
    backbone = load_golden_clip("tiny_clip_zsad", text_num_heads=3)
    used = np.flatnonzero(np.abs(backbone.params["text"]["token_embedding"]).sum(1))
    known = {}

    def tokenize(texts):
        ids = np.zeros((len(texts), 77), np.int32)
        for row, text in zip(ids, texts, strict=True):
            words = known.setdefault(text, used[len(known) % 60 : len(known) % 60 + 5])
            row[:7] = [49406, *words, 49407]
        return ids, np.tile(np.arange(77) >= 7, (len(texts), 1)).astype(np.int32)

    return dataclasses.replace(
        backbone, text=dataclasses.replace(backbone.text, tokenize=tokenize)
    ), known


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encode(backbone, texts):
    """Returns unit features of texts, encoded one at a time."""
    return unit(
        np.asarray(jax.jit(backbone.encode_text)(backbone.params, *backbone.tokenize(texts)))
    )


@pytest.mark.parametrize(
    ("name", "options", "sentences"),
    [
        ("clip", {}, [["a photo of a normal {}"], ["a photo of an anomalous {}"]]),
        (
            "clip",
            {
                "normal_text": "fine {}",
                "abnormal_text": "bad {}",
                "templates": ("my {}.", "one {}"),
            },
            [["my fine {}.", "one fine {}"], ["my bad {}.", "one bad {}"]],
        ),
        (
            "clip_ac",
            {},
            [
                [t.format(f"{word} {{}}") for t in IMAGENET_TEMPLATES]
                for word in ("normal", "anomalous")
            ],
        ),
    ],
)
def test_scores_are_softmax_of_cosines(clip, assert_near, name, options, sentences):
    backbone, _ = clip
    method = make_method(name, backbone, {**options, "feature_layers": (12, 24)})
    images = jax.random.normal(jax.random.key(0), (2, 56, 56, 3))
    features = jax.jit(method.features)(backbone.params, {}, images)
    prototypes = jax.jit(lambda f: method.prototypes(f, {}, CLASSES))(backbone.params)
    expected = [
        [
            unit(encode(backbone, [s.format(c.replace("_", " ")) for s in state]).mean(0))
            for state in sentences
        ]
        for c in CLASSES
    ]
    assert_near(prototypes, np.array(expected), 1e-5)

    scores = method.score(backbone.params, {}, prototypes, features, np.array([1, 0]))
    text = np.array(expected)[[1, 0]]
    logits = np.einsum("bd,bkd->bk", unit(np.asarray(features.global_tokens)[:, 0]), text) / 0.07
    assert_near(scores.image["global"], 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), 1e-4)
    patches = unit(np.asarray(features.patches))
    logits = np.einsum("blhwd,bkd->bhwlk", patches, text) / 0.07
    assert_near(scores.patches, 1 / (1 + np.exp(logits[..., 0] - logits[..., 1])), 1e-4)


def test_has_80_templates():
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert {"a photo of the {}.", "the {} in a video game.", "itap of my {}."} <= set(
        IMAGENET_TEMPLATES
    )


def test_has_no_parameters(clip):
    backbone, _ = clip
    method = make_method("clip", backbone)
    assert method.init(jax.random.key(0), backbone.params) == {}
    with pytest.raises(UserError, match="has nothing to learn"):
        method.loss(backbone.params, {}, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normal_text": "a photo"}, "'normal_text' is 'a photo'. Expected text with {}"),
        ({"templates": ()}, r"'templates' is \(\). Expected text with {}"),
        ({"templates": ("{}", "a photo")}, "'templates' is .*'a photo'.*. Expected text with {}"),
        ({"feature_layers": (25,)}, "between 1 and 24"),
    ],
)
def test_rejects_mistakes(clip, options, message):
    with pytest.raises(UserError, match=message):
        make_method("clip", clip[0], options)
