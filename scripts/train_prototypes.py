"""Training of a normal and an anomalous prototype on image embeddings, as a check on real data.

    python scripts/train_prototypes.py --train visa_test_cls.npz --evaluate mvtec_ad_test_cls.npz

An embeddings file holds `<class>` [n, d] and `<class>__label` [n] for each class. The two prototypes are
trained with the library's optimizer and compiled step, on all embeddings at once: the softmax of cosine
over temperature, with cross-entropy on the labels. The classes of the other file are evaluated with the
library's metrics; with --neighbors, also after re-scoring by the similarity of images (RsCIN of MuSc).
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from zsad_jax import metrics
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.methods import Batch, Method, Scores, Stage
from zsad_jax.methods.musc import rescore
from zsad_jax.methods.shared import losses
from zsad_jax.methods.shared.anomaly_map import anomaly_map
from zsad_jax.methods.shared.similarity import cosines
from zsad_jax.train import TrainingConfig, TrainState, make_optimizer, make_step
from zsad_jax.utils.errors import UserError

TEMPERATURE = 0.07


class Embeddings(NamedTuple):
    """The embeddings of a dataset, grouped by class.

    Attributes:
      classes: class names.
      vectors: [n, d].
      labels: 0 normal, 1 anomalous.
      category: index into `classes`.
    """

    classes: tuple[str, ...]
    vectors: np.ndarray
    labels: np.ndarray
    category: np.ndarray


def read_embeddings(path: pathlib.Path) -> Embeddings:
    """Reads an embeddings file."""
    arrays = read_arrays(path)
    classes = tuple(name for name in arrays if f"{name}__label" in arrays)
    if not classes:
        raise UserError(f"{path} is not an embeddings file: it has no array named <class>__label.")
    counts = [len(arrays[name]) for name in classes]
    return Embeddings(
        classes,
        np.concatenate([arrays[name] for name in classes]).astype(np.float32),
        np.concatenate([arrays[f"{name}__label"] for name in classes]).astype(np.int32),
        np.repeat(np.arange(len(classes)), counts),
    )


def prototypes_method(width: int) -> Method:
    """Returns a method with two learned vectors, compared with image embeddings; there are no patches."""

    def logits_of(params: Any, features: jax.Array) -> jax.Array:
        # Treats the embeddings as tokens of one image, so that the prototypes are not repeated for each
        # embedding.
        return cosines(features[None], params["prototypes"][None])[0] / TEMPERATURE

    def loss(frozen: Any, params: Any, features: jax.Array, batch: Batch):
        value = losses.image_cross_entropy(logits_of(params, features)[:, None], batch)
        return value, {"cross_entropy": value}

    def score(frozen, params, prototypes, features, category, *, extras=()):
        image = jax.nn.softmax(logits_of(params, features))[:, 1]
        return Scores({"global": image}, image[:, None, None, None])

    return Method(
        name="prototypes",
        config=None,
        init=lambda key, frozen: {"prototypes": 0.02 * jax.random.normal(key, (2, width))},
        features=lambda frozen, params, vectors: vectors,
        prototypes=lambda frozen, params, class_names: jnp.zeros(len(class_names)),
        score=score,
        anomaly_map=anomaly_map,
        loss=loss,
        groups=lambda params: {"prototypes": "prompts"},
        image_scores=("global",),
    )


def train_and_score(
    train: Embeddings, evaluate: Embeddings, *, steps: int, seed: int
) -> np.ndarray:
    """Trains on one dataset, and returns the scores of the embeddings of the other."""
    method = prototypes_method(train.vectors.shape[1])
    backbone: Any = None  # embeddings are the features
    params = method.init(jax.random.key(seed), {})
    config = TrainingConfig(learning_rate=1e-3, b1=0.9, b2=0.999)
    optimizer = make_optimizer(config, method, params, Stage())
    step = jax.jit(make_step(method, backbone, optimizer, Stage()))
    count = len(train.labels)
    batch = Batch(
        category=train.category,
        labels=train.labels,
        masks=np.zeros((count, 1, 1), np.float32),
        has_mask=np.zeros(count, bool),
        valid=np.ones(count, bool),
        class_names=train.classes,
    )
    # Transferred to the device once, not at every step.
    batch, vectors = jax.tree.map(jnp.asarray, (batch, train.vectors))
    state = TrainState(params, optimizer.init(params))
    for _ in range(steps):
        state, _ = step({}, state, vectors, batch)
    vectors = jnp.asarray(evaluate.vectors)
    scored = method.score({}, state.params, None, vectors, evaluate.category)
    return np.asarray(scored.image["global"])


def mean_auroc(embeddings: Embeddings, scores: np.ndarray, neighbors: Sequence[int] = ()) -> float:
    """Returns the mean image AUROC over the classes, and logs that of each; with neighbors, after RsCIN."""
    figures = []
    for index, name in enumerate(embeddings.classes):
        rows = embeddings.category == index
        own = scores[rows]
        if neighbors:
            own = rescore(own, embeddings.vectors[rows], neighbors)
        figures.append(metrics.compute(own, embeddings.labels[rows])["image_auroc"])
        logging.info("%s: image AUROC %.4f", name, figures[-1])
    return float(np.mean(figures))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", type=pathlib.Path, required=True, help="embeddings file to train on"
    )
    parser.add_argument(
        "--evaluate", type=pathlib.Path, required=True, help="embeddings file to evaluate on"
    )
    parser.add_argument(
        "--steps", type=int, default=1500, help="number of steps (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
    parser.add_argument(
        "--neighbors", type=int, nargs="+", default=[], help="numbers of images for re-scoring"
    )
    args = parser.parse_args()
    logging.set_verbosity(logging.INFO)
    try:
        train, evaluate = read_embeddings(args.train), read_embeddings(args.evaluate)
        scores = train_and_score(train, evaluate, steps=args.steps, seed=args.seed)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    count = len(evaluate.classes)
    logging.info("mean image AUROC over %d classes: %.4f", count, mean_auroc(evaluate, scores))
    if args.neighbors:
        mean = mean_auroc(evaluate, scores, args.neighbors)
        logging.info("mean image AUROC over %d classes, re-scored: %.4f", count, mean)


if __name__ == "__main__":
    main()
