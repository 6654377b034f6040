"""Pretraining of tips-nano and clip-nano, the small demo backbones of zsad_jax.

    python scripts/pretrain_nano.py train --workdir DIR            # about an hour on one CPU core
    python scripts/pretrain_nano.py train --workdir DIR --resume   # resumes from the last checkpoint
    python scripts/pretrain_nano.py evaluate --workdir DIR         # on held-out families
    python scripts/pretrain_nano.py describe --workdir DIR --steps 300 --seed 3
    python scripts/pretrain_nano.py export --workdir DIR           # into zsad_jax/backbones/nano/tips-nano

Add --family clip for clip-nano.

`train` aligns both towers, including patch tokens. `describe` then trains a new text tower for the finished
vision tower of tips-nano, on captions of whole images only, as large models are trained: its fixed prompts
describe images and are not classifiers of patches, which leaves room for learned prompts to improve.
clip-nano is exported after `train` alone (4,000 steps).

Images are generated on the fly (`nano_drawings`) in separate processes, and captioned in the vocabulary of
the fixed prompts (`nano_captions`). The towers are zsad_jax's own modules (`nano_towers`; the losses are in
`nano_model`). The result depends on --seed and --steps only: the same values give the same weights on the
same machine. On a shared CPU, set XLA_FLAGS=--xla_cpu_multi_thread_eigen=false.
"""

import argparse
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import nano_captions
import nano_drawings
import numpy as np
import optax
from absl import logging
from flax import serialization
from jaxtyping import Array
from nano_batches import batches, tokenize
from nano_model import Batch, Config, descend, encode_images, init_params, loss_fn, unit
from nano_towers import FAMILIES, GRID, PATCH, Params, write

from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES
from zsad_jax.utils import files

ASSETS = pathlib.Path(__file__).resolve().parents[1] / "zsad_jax" / "backbones" / "nano"
DESCRIBED = "described.msgpack"
VOCABULARY = {"tips": 2048, "clip": 512 + 1000 + 2}
TEMPERATURE = 0.3  # higher than in training, so that probabilities do not saturate


class State(NamedTuple):
    """The contents of a checkpoint."""

    step: Array
    params: Params
    average: Params
    optimizer: Any


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup, steps, 1e-5)
    decayed = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay, mask=decayed),
    )


def init_state(config: Config, seed: int, steps: int) -> State:
    params = init_params(config, seed)
    average = jax.tree.map(jnp.copy, params)  # copied because both are donated
    return State(jnp.int32(0), params, average, make_optimizer(config, steps).init(params))


@functools.partial(jax.jit, static_argnums=(0, 1, 4), donate_argnums=2)
def train_step(
    config: Config, steps: int, state: State, batch: Batch, vv_from: int | None = None
) -> tuple[State, dict[str, Array]]:
    """Runs one AdamW step; `average` is a moving average of the weights, fast at first."""
    key = jax.random.fold_in(jax.random.key(0), state.step)
    gradient = jax.grad(functools.partial(loss_fn, config, vv_from=vv_from), has_aux=True)
    gradients, terms = gradient(state.params, key, batch)
    # The temperature is fixed.
    gradients["text"][config.towers.temperature] = jnp.zeros(())
    updates, optimizer = make_optimizer(config, steps).update(
        gradients, state.optimizer, state.params
    )
    path = config.towers.embedding
    descend(updates["vision"], path[:-1])[path[-1]] *= config.embedding_rate
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
    average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
    return State(state.step + 1, params, average, optimizer), terms


def class_prototypes(config: Config, params: Params, tokenizer: pathlib.Path, names: list[str]):
    """Returns a normal and an anomalous unit vector per name [k 2 d], from the fixed industrial prompts."""
    model, rows = config.towers.text, []
    for name in names:
        pair = []
        for sentences in PROMPT_FAMILIES["industrial"].sentences(name):
            tokens = tokenize(config, tokenizer, sentences)
            pair.append(unit(unit(model.apply({"params": params["text"]}, *tokens)).mean(0)))
        rows.append(jnp.stack(pair))
    return jnp.stack(rows)


def evaluate(
    config: Config, params: Params, tokenizer: pathlib.Path, *, per_family: int = 12
) -> dict[str, float]:
    """Returns patch and image AUROC on the held-out families at 224 px, for class prompts and for "object".

    The image score is that of TIPSomaly: the first class token's probability plus the highest patch
    probability.
    """
    from sklearn.metrics import roc_auc_score

    encode = jax.jit(lambda params, images: encode_images(config, params, images))
    prototypes = class_prototypes(
        config, params, tokenizer, [*nano_drawings.HELD_OUT, nano_captions.OBJECT]
    )
    rows = []
    for index, family in enumerate(nano_drawings.HELD_OUT):
        rng = np.random.default_rng((7, index))
        drawings = [
            nano_drawings.draw(rng, 224, family, defective=k % 2 == 1) for k in range(per_family)
        ]
        tokens, patches = encode(params, np.stack([drawing.image for drawing in drawings]))
        masks = np.stack([drawing.mask for drawing in drawings])
        hit = masks.reshape(-1, GRID, PATCH, GRID, PATCH).mean((2, 4)) > 0.04
        labels = [bool(drawing.defect) for drawing in drawings]
        row = {}
        for prompts, which in (("class", index), ("object", -1)):
            direction = (prototypes[which, 1] - prototypes[which, 0]) / config.temperature
            patch = np.asarray(jax.nn.sigmoid(patches @ direction))
            whole = np.asarray(jax.nn.sigmoid(tokens @ direction))
            row[f"patch_{prompts}"] = roc_auc_score(hit.ravel(), patch.ravel())
            row[f"image_{prompts}"] = roc_auc_score(labels, whole[:, 0] + patch.max((1, 2)))
        row["global_object"] = roc_auc_score(labels, whole[:, 0])
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def export(config: Config, params: Params, tokenizer: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the towers in the published format of their family, and their tokenizer."""
    towers = config.towers
    temperature = {towers.temperature: towers.encode_temperature(TEMPERATURE)}
    finished = {"vision": towers.native(params["vision"]), "text": params["text"] | temperature}
    write(towers, finished, tokenizer, folder)


def save(state: State, workdir: pathlib.Path) -> None:
    with files.replaced(workdir / "state.msgpack") as temporary:
        temporary.write_bytes(serialization.to_bytes(state))


def load(config: Config, seed: int, steps: int, workdir: pathlib.Path) -> State:
    blank = init_state(config, seed, steps)
    return serialization.from_bytes(blank, (workdir / "state.msgpack").read_bytes())


def log_evaluation(config: Config, state: State, tokenizer: pathlib.Path) -> None:
    figures = evaluate(config, state.average, tokenizer)
    logging.info(
        "step %d: held-out AUROC: %s",
        state.step,
        " ".join(f"{k} {v:.4f}" for k, v in figures.items()),
    )


def train(config: Config, args: argparse.Namespace) -> None:
    """Trains the towers; logs every 50 steps, and saves and evaluates every `--save_every` steps."""
    tokenizer = args.workdir / config.towers.tokenizer
    resumed = args.resume and (args.workdir / "state.msgpack").exists()
    if not resumed:
        with files.replaced(tokenizer) as temporary:
            temporary.write_bytes(config.towers.train_tokenizer(args.seed))
    state = (
        load(config, args.seed, args.steps, args.workdir)
        if resumed
        else init_state(config, args.seed, args.steps)
    )
    first, start, sums = int(state.step), time.monotonic(), {}
    for step, batch in enumerate(
        batches(config, args.seed, first, args.steps, tokenizer, workers=args.workers), first + 1
    ):
        streams = config.towers.streams
        state, terms = train_step(config, args.steps, state, batch, streams[step % len(streams)])
        sums = {name: sums.get(name, 0.0) + float(term) for name, term in terms.items()}
        if step % 50 == 0:
            rate = (step - first) / (time.monotonic() - start)
            means = " ".join(f"{name} {total / 50:.4f}" for name, total in sums.items())
            logging.info(
                "step %d of %d, %.2f/s, %.0f s left: %s",
                step,
                args.steps,
                rate,
                (args.steps - step) / rate,
                means,
            )
            sums = {}
        if step % args.save_every == 0 or step == args.steps:
            save(state, args.workdir)
            log_evaluation(config, state, tokenizer)


def describe(config: Config, vision: Params, args: argparse.Namespace) -> Params:
    """Returns the given vision tower with a new text tower, trained with the losses on whole images."""
    whole = {f"{name}_loss": 0.0 for name in ("state", "patch", "top", "dense")}
    config = dataclasses.replace(config, **whole)
    text = init_params(config, args.seed)["text"]
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, 50, args.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )
    state = optimizer.init(text)

    @jax.jit
    def step(text: Params, state: Any, key: Array, batch: Batch) -> tuple[Params, Any, Array]:
        def loss(text: Params) -> Array:
            return loss_fn(config, {"vision": vision, "text": text}, key, batch)[0]

        value, gradient = jax.value_and_grad(loss)(text)
        updates, state = optimizer.update(gradient, state, text)
        updates[config.towers.temperature] = jnp.zeros(())
        return optax.apply_updates(text, updates), state, value

    tokenizer = args.workdir / config.towers.tokenizer
    stream = batches(config, args.seed, 0, args.steps, tokenizer, workers=args.workers)
    for number, batch in enumerate(stream):
        key = jax.random.fold_in(jax.random.key(args.seed), number)
        text, state, value = step(text, state, key, batch)
        if number % 50 == 49:
            logging.info("description step %d of %d: loss %.4f", number + 1, args.steps, value)
    return {"vision": vision, "text": text}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("action", choices=("train", "describe", "export", "evaluate"))
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        required=True,
        help="folder of the checkpoint and the tokenizer",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=8000,
        help="number of steps (default %(default)s)",
    )
    parser.add_argument(
        "--save_every",
        type=int,
        default=500,
        help="steps between checkpoints (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes that generate images (default %(default)s)",
    )
    defaults = Config()
    parser.add_argument(
        "--depth",
        type=int,
        default=defaults.depth,
        help="number of vision blocks (default %(default)s)",
    )
    parser.add_argument(
        "--classes",
        type=int,
        default=defaults.classes,
        help="classes per batch, with four images each (default %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the checkpoint in --workdir"
    )
    parser.add_argument(
        "--family",
        choices=tuple(FAMILIES),
        default="tips",
        help="family of the backbone (default %(default)s)",
    )
    parser.add_argument(
        "--assets",
        type=pathlib.Path,
        default=ASSETS,
        help="folder in which export creates the backbone's folder",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse_arguments()
    logging.set_verbosity(logging.INFO)
    cv2.setNumThreads(1)
    vocabulary = VOCABULARY[args.family]
    config = Config(
        family=args.family, depth=args.depth, classes=args.classes, vocabulary=vocabulary
    )
    if args.action == "train":
        train(config, args)
        return
    state = load(config, args.seed, args.steps, args.workdir)
    tokenizer = args.workdir / config.towers.tokenizer
    described = args.workdir / DESCRIBED
    if args.action == "describe":
        towers = describe(config, state.average["vision"], args)
        with files.replaced(described) as temporary:
            temporary.write_bytes(serialization.to_bytes(towers))
    if described.exists():
        towers = serialization.from_bytes(state.average, described.read_bytes())
        state = state._replace(average=towers)
    if args.action == "export":
        export(config, state.average, tokenizer, args.assets / f"{args.family}-nano")
    log_evaluation(config, state, tokenizer)


if __name__ == "__main__":
    main()
