"""Tests of CoOp and CoCoOp against the public code, and of their adaptation to anomaly detection."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from zsad_jax.methods import Batch, make_method
from zsad_jax.methods.shared.similarity import normalize
from zsad_jax.utils.errors import UserError

FEATURES, SCORES = 1e-5, 1e-4
PLACEHOLDER = 343  # "x" represents learned tokens in the golden's sentences
SENTENCES = ("normal bottle.", "anomalous bottle.")


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("coop_cocoop", "expected")


@pytest.fixture(scope="module")
def clip(load_golden_clip, golden):
    """Returns the tiny CLIP; its tokenizer knows the golden's sentences with and without the period."""
    backbone = load_golden_clip("tiny_clip_zsad", text_num_heads=3)
    start, end = golden["in/token_ids"][0, 0], golden["in/token_ids"].max()
    known = {"": [start, end]}
    for text, row in zip(SENTENCES, golden["in/token_ids"], strict=True):
        ids = [i for i in row[: row.argmax() + 1] if i != PLACEHOLDER]
        known |= {text: ids, text[:-1]: [*ids[:-2], end]}

    def tokenize(texts):
        rows = [known[text] for text in texts]
        ids = np.zeros((len(rows), 77), np.int32)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = found
        return ids, (np.arange(77) >= [[len(found)] for found in rows]).astype(np.int32)

    return dataclasses.replace(backbone, text=dataclasses.replace(backbone.text, tokenize=tokenize))


@pytest.fixture(scope="module")
def images(golden):
    return golden["in/images"].transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def features(clip, images):
    return jax.jit(make_method("coop", clip).features)(clip.params, {}, images)


def read_params(method, golden):
    """Returns the golden's parameters, which have the authors' names."""
    prefix = f"param/{method.name}."
    names = [name for name in golden if name.startswith(prefix)]
    return method.import_params({name.removeprefix(prefix): golden[name] for name in names})


def score(method, clip, params, features, *extras, class_names=("bottle",)):
    """Returns prototypes and scores of images of the first class."""

    @jax.jit
    def run(frozen, params, features):
        prototypes = method.prototypes(frozen, params, class_names)
        category = np.zeros(len(features.global_tokens), int)
        return prototypes, method.score(
            frozen, params, prototypes, features, category, extras=extras
        )

    return run(clip.params, params, features)


def losses_of(method, clip, params, features, batch):
    """Returns ((loss, terms), gradient)."""

    @jax.jit
    def run(frozen, params, features):
        return jax.value_and_grad(lambda p: method.loss(frozen, p, features, batch), has_aux=True)(
            params
        )

    return run(clip.params, params, features)


def truth(golden, **changes):
    count = len(golden["in/labels"])
    batch = {
        "category": np.zeros(count, int),
        "labels": golden["in/labels"],
        "masks": np.zeros((count, 56, 56), np.float32),
        "has_mask": np.ones(count, bool),
        "valid": np.ones(count, bool),
        "class_names": ("bottle",),
    }
    return Batch(**batch | changes)


def logits_of(scores):
    return scores.extras["global_cosines"] / 0.07


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop_matches_golden(clip, features, golden, assert_near, position):
    method = make_method("coop", clip, {"num_prompts": 4, "position": position})
    params = read_params(method, golden)
    prototypes, scores = score(method, clip, params, features, "global_cosines")
    assert_near(prototypes.text[0], golden[f"coop_{position}/text_features"], FEATURES)
    assert_near(logits_of(scores), golden[f"coop_{position}/logits"], SCORES)
    expected = jax.nn.softmax(golden[f"coop_{position}/logits"])[:, 1]
    assert_near(scores.image["global"], expected, SCORES)

    (loss, terms), gradient = losses_of(method, clip, params, features, truth(golden))
    assert set(terms) == {"cross_entropy"}
    assert_near(loss, golden[f"coop_{position}/loss"], FEATURES)
    assert_near(gradient["context"], golden[f"coop_{position}/grad_ctx"], SCORES)


def test_cocoop_matches_golden(clip, features, golden, assert_near):
    method = make_method("cocoop", clip, {"num_prompts": 4, "lam": 0.0})
    params = read_params(method, golden)
    _, scores = score(method, clip, params, features, "global_cosines")
    assert_near(logits_of(scores), golden["cocoop/logits"], SCORES)
    (loss, _), gradient = losses_of(method, clip, params, features, truth(golden))
    assert_near(loss, golden["cocoop/loss"], FEATURES)
    found = {
        "ctx": gradient["context"],
        "meta_net.linear1.weight": gradient["network"]["first"]["kernel"].T,
        "meta_net.linear1.bias": gradient["network"]["first"]["bias"],
        "meta_net.linear2.weight": gradient["network"]["second"]["kernel"].T,
        "meta_net.linear2.bias": gradient["network"]["second"]["bias"],
    }
    for name, value in found.items():
        assert_near(value, golden[f"cocoop/grad_{name}"], SCORES)


@pytest.mark.parametrize(("name", "vv_from"), [("coop", None), ("cocoop", 2)])
def test_maps_match_closed_form(clip, images, golden, assert_near, name, vv_from):
    """Computes cosines of the last block's patches, bilinear upsampling and a Gaussian of sigma 4."""
    method = make_method(name, clip, {"num_prompts": 4})
    params = read_params(method, golden)
    features = jax.jit(method.features)(clip.params, params, images)
    _, scores = score(method, clip, params, features, "text_features")
    found = method.anomaly_map(scores.patches, 56)

    encode = jax.jit(clip.encode_image, static_argnames=("layers", "vv_from"))
    patches = encode(clip.params, images, layers=(8,), vv_from=vv_from).patches[:, 0]
    cosines = jnp.einsum("bhwd,bkd->bhwk", normalize(patches), scores.extras["text_features"])
    probabilities = jax.nn.softmax(cosines / 0.07)[..., 1]
    raw = jax.image.resize(probabilities, (2, 56, 56), "bilinear")
    assert_near(found, scipy.ndimage.gaussian_filter(raw, (0, 4, 4)), SCORES)
    assert method.map_range == (0.0, 1.0)
    assert make_method(name, clip, {"feature_layers": (12, 24)}).map_range == (0.0, 2.0)


def test_cocoop_without_network_equals_coop(clip, features, golden, assert_near):
    options = {"num_prompts": 4, "position": "middle"}
    plain, shifted = (make_method(name, clip, options) for name in ("coop", "cocoop"))
    params = shifted.init(jax.random.key(0), clip.params)
    params["network"]["second"] = jax.tree.map(jnp.zeros_like, params["network"]["second"])
    of_each = [
        score(method, clip, params, features)[1].image["global"] for method in (plain, shifted)
    ]
    assert_near(of_each[1], of_each[0], FEATURES)


# CoCoOp uses masks by default; its network has enough hidden units that all parameters have an effect.
LOCAL = {"coop": {"lam": 1.0}, "cocoop": {"reduction": 2}}


@pytest.mark.parametrize("name", LOCAL)
def test_ignores_padding_and_uses_all_loss_terms(clip, images, golden, assert_near, name):
    method = make_method(name, clip, {"num_prompts": 2, **LOCAL[name]})
    params = method.init(jax.random.key(1), clip.params)
    features = jax.jit(method.features)(clip.params, params, images)
    masks = np.zeros((2, 56, 56), np.float32)
    masks[:, 10:30, 20:50] = golden["in/labels"][:, None, None]
    batch = truth(golden, masks=masks)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), features)
    longer = dataclasses.replace(
        batch,
        category=np.append(batch.category, 0),
        labels=np.append(batch.labels, 1),
        masks=np.concatenate([masks, masks[:1]]),
        has_mask=np.array([True] * 3),
        valid=np.array([True, True, False]),
    )
    names = ("loss", "cross_entropy", "focal", "dice_abnormal", "dice_normal")

    @jax.jit
    @jax.value_and_grad
    def weighted(params, frozen, features, batch, weights):
        loss, terms = method.loss(frozen, params, features, batch)
        return sum(weights[name] * value for name, value in {"loss": loss, **terms}.items())

    total, *of_terms = (
        weighted(params, clip.params, features, batch, {name: float(name == one) for name in names})
        for one in names
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_terms))
    jax.tree.map(lambda found, *terms: assert_near(found, sum(terms), SCORES), total, *of_terms)
    alone = {name: float(name == "loss") for name in names}
    jax.tree.map(
        lambda found, expected: assert_near(found, expected, SCORES),
        weighted(params, clip.params, padded, longer, alone),
        total,
    )


def test_each_class_has_its_own_sentences(backbone):
    """Uses TIPS, which has neither start nor end token, and names of different lengths."""
    lengths = {"": 0, "normal a": 2, "anomalous a": 2, "normal b c": 3, "anomalous b c": 4}

    def tokenize(texts):
        counts = np.array([lengths[text.rstrip(".")] + text.endswith(".") for text in texts])
        ids = np.arange(12)[None] + counts[:, None] + 1
        return ids.astype(np.int32), (np.arange(12) >= counts[:, None]).astype(np.int32)

    speaking = dataclasses.replace(
        backbone, text=dataclasses.replace(backbone.text, tokenize=tokenize)
    )
    method = make_method("coop", speaking, {"num_prompts": 3, "position": "front"})
    params = method.init(jax.random.key(0), speaking.params)
    found = jax.jit(lambda f, p: method.prototypes(f, p, ("a", "b_c")))(speaking.params, params)
    places = [np.flatnonzero(row).tolist() for row in np.asarray(found.is_context).reshape(4, -1)]
    assert places == [[2, 3, 4], [2, 3, 4], [3, 4, 5], [4, 5, 6]]
    assert (found.paddings == 0).sum(-1).tolist() == [[6, 6], [7, 8]]
    norms = jnp.linalg.norm(found.text, axis=-1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_rejects_mistakes(clip):
    with pytest.raises(UserError, match="'position' is 'back'"):
        make_method("coop", clip, {"position": "back"})
    with pytest.raises(UserError, match="has 1 global token"):
        make_method("coop", clip, {"global_token": 1})
    method = make_method("coop", clip, {"num_prompts": 75})
    with pytest.raises(UserError, match="longer than the 77"):
        method.prototypes(clip.params, method.init(jax.random.key(0), clip.params), ("bottle",))
    with pytest.raises(KeyError, match="ctx"):
        method.import_params({"other": np.zeros(1)})


def test_network_input_is_normalized(clip, features):
    """Checks that the scale of the image feature has no effect."""
    method = make_method("cocoop", clip, {"num_prompts": 2})
    params = method.init(jax.random.key(0), clip.params)
    larger = features._replace(global_tokens=3 * features.global_tokens)
    first, second = (
        score(method, clip, params, one, "text_features")[1].extras["text_features"]
        for one in (features, larger)
    )
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(normalize(first), first, atol=1e-5)
