"""The contract carries more than TIPSomaly: two toy methods, each defined here alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsad_jax.methods import Batch, Method, Scores
from zsad_jax.methods.anomaly_map import anomaly_map
from zsad_jax.methods.losses import cross_entropy, weighted_mean
from zsad_jax.methods.prompts import FAMILIES, encode_pairs, tokenize
from zsad_jax.methods.similarity import cosine_softmax, normalize

CLASSES = ("round_plate", "fine-mesh")
FAMILY = FAMILIES["object_agnostic"]


def score_with(text, features, category, temperature):
    """What both toys say of features, given (normal, abnormal) texts of each category."""
    tokens = cosine_softmax(features.global_tokens[:, :1], text[category], temperature)
    patches = cosine_softmax(features.patches[:, -1], text[category], temperature)
    return Scores(image={"score": tokens[:, 0, 1]}, patches=patches[..., 1:])


def class_conditioned(backbone):
    """Learned tokens in front of a sentence about the image's own class."""

    def prototypes(frozen, params, class_names):
        pairs = [FAMILY.sentences(name) for name in class_names]
        ids, paddings = tokenize(backbone, [text for pair in pairs for (text,) in pair])
        words = backbone.embed_tokens(frozen, ids)
        learned = jnp.broadcast_to(params["context"], (len(ids), *params["context"].shape))
        valid = np.zeros(learned.shape[:2], int)
        features = backbone.encode_prompts(
            frozen,
            jnp.concatenate([learned, words], axis=1),
            np.concatenate([valid, paddings], axis=1),
        )
        return normalize(features).reshape(len(class_names), 2, -1)

    def score(frozen, params, prototypes, features, category, *, extras=()):
        return score_with(prototypes, features, category, backbone.temperature)

    def loss(frozen, params, features, batch):
        text = prototypes(frozen, params, batch.class_names)
        image = score(frozen, params, text, features, batch.category).image["score"]
        logits = jnp.stack([1 - image, image], axis=-1)
        value = cross_entropy(logits, batch.labels, batch.valid.astype(jnp.float32))
        return value, {"cross_entropy": value}

    width = backbone.text_width
    return Method(
        name="toy_class_conditioned",
        config=None,
        init=lambda key, frozen: {"context": 0.02 * jax.random.normal(key, (2, width))},
        features=lambda frozen, params, images: backbone.encode_image(frozen, images),
        prototypes=prototypes,
        score=score,
        anomaly_map=anomaly_map,
        loss=loss,
        groups=lambda params: {"context": "prompts"},
        image_scores=("score",),
    )


LEAF = ("encoder", "encoder_norm", "bias")


def inside_the_tower(backbone):
    """Learns the bias of the vision tower's last norm; the images are encoded in every step."""

    def replaced(frozen, params):
        encoder = frozen["vision"]["encoder"]
        norm = encoder["encoder_norm"] | {"bias": params["bias"]}
        return frozen | {"vision": frozen["vision"] | {"encoder": encoder | {"encoder_norm": norm}}}

    def features(frozen, params, images):
        return backbone.encode_image(replaced(frozen, params), images)

    def prototypes(frozen, params, class_names):
        return encode_pairs(backbone, frozen, FAMILY, class_names)

    def score(frozen, params, prototypes, features, category, *, extras=()):
        return score_with(prototypes, features, category, backbone.temperature)

    def loss(frozen, params, images, batch):
        text = prototypes(frozen, params, batch.class_names)
        scores = score(frozen, params, text, features(frozen, params, images), batch.category)
        maps = anomaly_map(scores.patches, batch.masks.shape[1:], sigma=0.0)
        errors = jnp.square(maps - batch.masks).mean(axis=(1, 2))
        value = weighted_mean(errors, (batch.valid & batch.has_mask).astype(jnp.float32))
        return value, {"squares": value}

    return Method(
        name="toy_inside_the_tower",
        config=None,
        init=lambda key, frozen: {"bias": frozen["vision"]["encoder"]["encoder_norm"]["bias"]},
        features=features,
        prototypes=prototypes,
        score=score,
        anomaly_map=anomaly_map,
        loss=loss,
        groups=lambda params: {"bias": "tower"},
        image_scores=("score",),
        cacheable=False,
    )


@pytest.mark.parametrize("factory", [class_conditioned, inside_the_tower])
def test_two_steps_of_training_and_an_evaluation(backbone, e2e_golden, factory):
    method = factory(backbone)
    frozen, images = backbone.params, jnp.asarray(e2e_golden["images"])
    batch = Batch(
        category=jnp.asarray(e2e_golden["class_ids"]),
        labels=jnp.asarray(e2e_golden["labels"]),
        masks=jnp.asarray(e2e_golden["masks"], jnp.float32),
        has_mask=jnp.ones(12, bool),
        valid=jnp.arange(12) < 11,
        class_names=CLASSES,
    )

    @jax.jit
    def evaluate(frozen, params, images, category):
        prototypes = method.prototypes(frozen, params, CLASSES)
        features = method.features(frozen, params, images)
        scores = method.score(frozen, params, prototypes, features, category)
        return scores, method.anomaly_map(scores.patches, (70, 84))

    start = params = method.init(jax.random.key(0), frozen)
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)
    step = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    seen = jax.jit(method.features)(frozen, params, images) if method.cacheable else images
    update = jax.jit(optimizer.update)
    losses = []
    for _ in range(3):
        (loss, _), gradients = step(frozen, params, seen, batch)
        losses.append(float(loss))
        updates, state = update(gradients, state)
        params = optax.apply_updates(params, updates)
    assert losses[2] < losses[0]

    before, _ = evaluate(frozen, start, images, batch.category)
    scores, maps = evaluate(frozen, params, images, batch.category)
    assert tuple(scores.image) == method.image_scores
    assert scores.image["score"].shape == (12,)
    assert maps.shape == (12, 70, 84)
    low, high = method.map_range
    assert low <= maps.min() < maps.max() <= high
    assert jnp.abs(scores.patches - before.patches).max() > 1e-4
    groups = method.groups(params)
    assert jax.tree.structure(groups) == jax.tree.structure(params)
