"""Tests that the method contract covers three toy methods, each defined only here."""

import ast
import dataclasses
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import zsad_jax.methods
from zsad_jax.backbones.feature_cache import Features, FeaturesConfig
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.evaluate import Contender, evaluate
from zsad_jax.methods import Method, Scores
from zsad_jax.methods.base import encoder_of, score_fn, vision_side
from zsad_jax.methods.shared.anomaly_map import anomaly_map
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.methods.shared.losses import image_cross_entropy, weighted_mean
from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES, encode_pairs, tokenize
from zsad_jax.methods.shared.similarity import cosines, normalize
from zsad_jax.train import Member, TrainingConfig, train
from zsad_jax.utils.sharding import make_mesh

CLASSES = ("round_plate", "fine-mesh")
FAMILY = PROMPT_FAMILIES["object_agnostic"]


def score_with(text, features, category, temperature):
    """Returns scores of features, given (normal, anomalous) texts of each category."""
    tokens, patches = (
        jax.nn.softmax(cosines(x, text[category]) / temperature)
        for x in (features.global_tokens[:, :1], features.patches[:, -1])
    )
    return Scores(image={"score": tokens[:, 0, 1]}, patches=patches[..., 1:])


def class_conditioned(backbone):
    """Returns a method with learned tokens before a sentence about the image's class."""

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
        value = image_cross_entropy(logits[:, None], batch)
        return value, {"cross_entropy": value}

    width = backbone.text_width
    return Method(
        name="toy_class_conditioned",
        config=MethodConfig(),
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
    """Returns a method that learns the bias of the vision tower's last norm, so images are always encoded."""

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

    def loss(frozen, params, features, batch):
        text = prototypes(frozen, params, batch.class_names)
        scores = score(frozen, params, text, features, batch.category)
        maps = anomaly_map(scores.patches, batch.masks.shape[1:], sigma=0.0)
        errors = jnp.square(maps - batch.masks).mean(axis=(1, 2))
        value = weighted_mean(errors, (batch.valid & batch.has_mask).astype(jnp.float32))
        return value, {"squares": value}

    return Method(
        name="toy_inside_the_tower",
        config=MethodConfig(),
        init=lambda key, frozen: {"bias": frozen["vision"]["encoder"]["encoder_norm"]["bias"]},
        features=features,
        prototypes=prototypes,
        score=score,
        anomaly_map=anomaly_map,
        loss=loss,
        groups=lambda params: {"bias": "tower"},
        group_names=("tower",),
        image_scores=("score",),
        cacheable=False,
    )


class NearestReferenceConfig(MethodConfig):
    name = "toy_nearest_reference"


def nearest_reference(backbone):
    """Returns a method that scores patches by the distance to normal images of their category, without text."""

    def prototypes(frozen, params, class_names, references=None):
        patches = normalize(references.patches[:, :, -1])  # [category, image, h, w, d]
        return patches.reshape(len(class_names), -1, patches.shape[-1])

    def compute(frozen, params, of_images, features):
        patches = 1 - cosines(features.patches[:, -1], of_images).max(axis=-1, keepdims=True)
        return Scores({"score": patches.max(axis=(1, 2, 3))}, patches)

    def loss(frozen, params, features, batch):
        raise NotImplementedError

    return Method(
        init=lambda key, frozen: {},
        prototypes=prototypes,
        score=score_fn(compute),
        loss=loss,
        image_scores=("score",),
        references="required",
        **vision_side(backbone, NearestReferenceConfig()),
    )


def test_references_are_normal_images_of_category(backbone, e2e_golden):
    method, images = nearest_reference(backbone), e2e_golden["images"][:4]
    features = jax.jit(method.features)(backbone.params, {}, images)
    by_category = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), features)
    prototypes = method.prototypes(backbone.params, {}, CLASSES, references=by_category)
    score = jax.jit(method.score)
    own, other = (
        score(backbone.params, {}, prototypes, features, np.array(category))
        for category in ([0, 0, 1, 1], [1, 1, 0, 0])
    )
    np.testing.assert_allclose(own.image["score"], 0, atol=1e-5)
    assert (other.image["score"] > 1e-3).all()


def encoded(image):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset(e2e_golden):
    images = np.round(e2e_golden["images"] * 255).astype(np.uint8)
    samples = [
        Sample(
            image=encoded(image),
            mask=encoded(mask * np.uint8(255)) if label else None,
            has_mask=True,
            label=int(label),
            category=CLASSES[category],
            prompt_name=CLASSES[category],
            file_name=f"{number}.png",
        )
        for number, (image, mask, label, category) in enumerate(
            zip(
                images,
                e2e_golden["masks"],
                e2e_golden["labels"],
                e2e_golden["class_ids"],
                strict=True,
            )
        )
    ]
    return Samples("toys", samples)


class Memory:
    """A store that keeps states and curves in memory."""

    def __init__(self):
        self.states, self.losses = {}, []

    def latest(self):
        return max(self.states, default=None)

    def restore(self, epoch, like):
        return self.states[epoch]

    def save(self, epoch, state):
        self.states[epoch] = jax.tree.map(np.asarray, state)

    def write(self, step, values):
        self.losses.append(values["loss"])


@pytest.mark.parametrize("factory", [class_conditioned, inside_the_tower])
def test_trains_two_steps_and_evaluates(backbone, dataset, factory):
    """Uses the library's trainer and evaluator, which do not know the toy methods."""
    size = dataclasses.replace(backbone.preprocess, image_size=70)
    backbone = dataclasses.replace(backbone, preprocess=size)
    method, memory, mesh = factory(backbone), Memory(), make_mesh()
    start = method.init(jax.random.split(jax.random.key(3))[0], backbone.params)
    features = Features(
        dataset,
        backbone,
        dict([encoder_of(method)]),
        FeaturesConfig(cache="none"),
        mesh=mesh,
        rows=12,
    )
    (params,) = train(
        method,
        backbone,
        features,
        [Member(3, TrainingConfig(epochs=2, batch_size=12, learning_rate=1e-3))],
        mesh=mesh,
        saver=memory,
        curves=[memory],
    )
    assert len(memory.losses) == 2
    assert memory.losses[1] < memory.losses[0]
    contenders = [Contender(method, start, "before"), Contender(method, params)]
    result = evaluate(contenders, features, backbone, mesh=mesh)
    before, after = (one.scored.image_scores["score"] for one in result)
    assert after.shape == (12,)
    assert np.abs(after - before).max() > 1e-5
    for one in result:
        assert set(one.scored.metrics) == set(CLASSES)
        for by_score in one.scored.metrics.values():
            assert all(0 <= value <= 1 for value in by_score["score"].values.values())


METHODS_FOLDER = pathlib.Path(zsad_jax.methods.__file__).parent


@pytest.mark.parametrize("path", sorted(METHODS_FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_functions_have_at_most_five_positional_parameters(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            parameters = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
            assert len(set(parameters) - {"self"}) <= 5, (path, parameters)


def test_coop_and_cocoop_need_their_registry_lines_and_one_file():
    package = METHODS_FOLDER.parent
    lines = [
        line.strip()
        for path in package.rglob("*.py")
        if path != METHODS_FOLDER / "coop.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if '"coop"' in line or "CoOpConfig" in line
    ]
    assert lines == [
        '"coop": _included("coop", "CoOpConfig"),',
        '"cocoop": _included("coop", "CoCoOpConfig"),',
    ]
