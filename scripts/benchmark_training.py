"""Benchmark of training: features encoded once against every epoch, seeds together, and PyTorch.

    python scripts/benchmark_training.py --method anomalyclip --backbone clip-nano --parts cache seeds
    python scripts/benchmark_training.py --backbone tips-s14-hr --parts pytorch --epochs 5 --images 40

Parts:
  cache    all epochs with features in memory, against images that are encoded in every epoch. Both sides are
           compiled beforehand, and the first loads and encodes the images within the measured time.
  seeds    several seeds together, against one after another, each in a process of its own. Features are on
           disk, and compilation is included, with an empty store of compiled programs at the start of both.
  pytorch  the library in a new process, first with nothing stored, then with features and compiled programs on
           disk, against PyTorch (`benchmark_peers.py`), which encodes every image in every epoch, as the
           published code does. The losses of each step must agree in float32. Needs the extra `parity`.

Models have random weights, images are drawn, and each side runs in its own process. `encode_seconds` is the
part of the time before the first step, `images_per_second` counts an image once per epoch and seed, operations
are those of matrix products in the library's programs, and ratios are to the last row of a part.
"""

import argparse
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import benchmark_sides as shared
import numpy as np
from benchmark_sides import Turn

from zsad_jax.utils import command_line, compilations
from zsad_jax.utils.errors import UserError

TOLERANCE = 1e-3  # of losses, relative
Turns = dict[str, list[Turn]]  # by side; their times are added up


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared.add_model_options(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="images per step")
    parser.add_argument("--images", type=int, default=40, help="number of images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds of the part 'seeds'")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all that are possible")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures all parts, and prints and writes the results."""
    shared.settle(options)
    peer = options.method == "tipsomaly" and shared.has_peer(options)
    if not peer and options.parts and "pytorch" in options.parts:
        raise UserError(
            f"There is no PyTorch side for training {options.method}. Choose tipsomaly and install the extra"
            " parity, or pass other --parts."
        )
    rows: list[dict[str, Any]] = []
    for part in options.parts or [part for part in PARTS if peer or part != "pytorch"]:
        with tempfile.TemporaryDirectory() as folder:
            options.folder = pathlib.Path(folder)
            shared.write_weights(options)
            # For the processes of both sides, as commands set it.
            os.environ["ZSAD_JAX_HOME"] = str(options.folder / "home")
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(options.folder / "home" / "xla")
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(compilations.SHORTEST_S)
            shared.draw_dataset(options.folder / "images", options.images, options.image_size)
            with shared.Side(Ours, options.cores, options) as side:
                flops = side.time("flops").value
            rows += to_rows(part, PARTS[part](options), options, *flops)
    shared.report(options, rows)


def to_rows(
    part: str, turns: Turns, options: argparse.Namespace, tower_flops: float, step_flops: float
) -> list[dict[str, Any]]:
    """Returns a row for each side."""
    steps = options.epochs * -(-options.images // options.batch_size)
    rows = []
    for side, found in turns.items():
        seconds, cpu = (sum(times) for times in zip(*(one[:2] for one in found), strict=True))
        values = [one.value for one in found]
        trained = sum(len(one["seeds"]) for one in values)
        flops = trained * steps * step_flops
        flops += sum(one["encoded"] for one in values) * options.images * tower_flops
        rows.append(
            {
                "part": part,
                "side": side,
                "seconds": seconds,
                "encode_seconds": sum(one.get("encode_seconds", 0) for one in values),
                "cpu_seconds": cpu,
                "images_per_second": trained * options.epochs * options.images / seconds,
                "tflop": flops / 1e12,
                "share_of_peak": flops / seconds / max(one["peak"] for one in values),
                "peak_gib": max(one.memory for one in found),
            }
        )
    for row in rows:
        row["time_ratio"] = row["seconds"] / rows[-1]["seconds"]
        row["cpu_ratio"] = row["cpu_seconds"] / rows[-1]["cpu_seconds"]
    return rows


def measure_cache(options: argparse.Namespace) -> Turns:
    turns = {}
    for what, cache in (("features in memory", "memory"), ("encoded in every epoch", "none")):
        with shared.Side(Ours, options.cores, options) as side:
            side.time("train", cache, [0], 1)
            turns[what] = [timed(side, "train", cache, [0], options.epochs)]
    return turns


def measure_seeds(options: argparse.Namespace) -> Turns:
    seeds = list(range(options.seeds))
    measure_once(Ours, options, "train", "disk", [0], 1)  # stores features
    turns = {}
    for what, runs in (("together", [seeds]), ("one after another", [[seed] for seed in seeds])):
        shutil.rmtree(options.folder / "home" / "xla", ignore_errors=True)
        turns[what] = [
            measure_once(Ours, options, "train", "disk", one, options.epochs) for one in runs
        ]
    return turns


def measure_pytorch(options: argparse.Namespace) -> Turns:
    measure_once(Ours, options, "export")
    shutil.rmtree(options.folder / "home", ignore_errors=True)
    train = "train", "disk", [0], options.epochs
    turns = {
        "zsad_jax, nothing stored": [measure_once(Ours, options, *train)],
        "zsad_jax, all stored": [measure_once(Ours, options, *train)],
        "PyTorch": [measure_once(Theirs, options, "train", options.epochs)],
    }
    ours, _, theirs = (np.array(one[0].value["losses"]) for one in turns.values())
    difference = np.abs(ours / theirs - 1).max()
    if options.dtype == "float32" and not difference <= TOLERANCE:
        raise UserError(f"The losses of both sides differ by {difference:.1e} of their values.")
    return turns


PARTS: dict[str, Callable[[argparse.Namespace], Turns]] = {
    "cache": measure_cache,
    "seeds": measure_seeds,
    "pytorch": measure_pytorch,
}


def measure_once(side_class: type, options: argparse.Namespace, *call: Any) -> Turn:
    """Times one call in a new process."""
    with shared.Side(side_class, options.cores, options) as side:
        return timed(side, *call)


def timed(side: shared.Side, *call: Any) -> Turn:
    """Times one call, and adds the rate of plain matrix products to its value."""
    turn = side.time(*call)
    products = [side.time("products") for _ in range(3)]
    peak = max(math.prod(one.value) / one.seconds for one in products)
    return turn._replace(value={**(turn.value or {}), "peak": peak})


class Ours(shared.JaxSide):
    """Training with the library."""

    def train(self, cache: str, seeds: Sequence[int], epochs: int) -> dict[str, Any]:
        """Trains, and returns the losses of the first seed in each step, and the time until it started."""
        from zsad_jax.backbones.feature_cache import Features, FeaturesConfig
        from zsad_jax.methods.base import encoder_of
        from zsad_jax.train import Member, OrbaxSaver, TrainingConfig, train

        folder = pathlib.Path(os.environ["ZSAD_JAX_HOME"]) / "features"
        encoded = epochs if cache == "none" else int(not any(folder.rglob("*.npy")))
        start = time.perf_counter()
        key, encode = encoder_of(self.method)
        features = Features(
            self.dataset, self.backbone, {key: encode}, FeaturesConfig(cache=cache),
            mesh=self.mesh, rows=self.options.batch_size,
        )  # fmt: skip
        encode_seconds = time.perf_counter() - start
        recipe = dict(self.method.config.recipe.training)
        recipe |= {"epochs": epochs, "batch_size": self.options.batch_size, "shuffle": False}
        members = [Member(seed, TrainingConfig(**recipe)) for seed in seeds]
        curves = [Curves() for _ in members]
        with tempfile.TemporaryDirectory() as folder:
            saver = OrbaxSaver(pathlib.Path(folder))
            train(
                self.method, self.backbone, features, members,
                mesh=self.mesh, saver=saver, curves=curves,
            )  # fmt: skip
            saver.close()
        return {
            "losses": curves[0].losses,
            "seeds": seeds,
            "encoded": encoded,
            "encode_seconds": encode_seconds,
        }

    def flops(self) -> tuple[float, float]:
        """Returns the operations of the vision tower per image, and those of a step without it."""
        import jax

        from zsad_jax.methods.base import Batch

        rows, size, frozen = self.options.batch_size, self.options.image_size, self.backbone.params
        params = jax.eval_shape(self.method.init, jax.random.key(0), frozen)
        images = jax.ShapeDtypeStruct((rows, size, size, 3), np.float32)
        features = jax.eval_shape(self.method.features, frozen, params, images)
        numbers, flags = np.zeros(rows, np.int32), np.ones(rows, bool)
        masks = np.zeros((rows, size, size), np.float32)
        batch = Batch(numbers, numbers, masks, flags, flags, class_names=(shared.CATEGORY,))

        def gradient(params: Any, frozen: Any, features: Any) -> Any:
            return jax.grad(lambda one: self.method.loss(frozen, one, features, batch)[0])(params)

        tower = shared.count_flops(self.method.features, frozen, params, images) / rows
        return tower, shared.count_flops(gradient, params, frozen, features)

    def export(self) -> None:
        """Writes what the PyTorch side needs: images, ground truth, texts and initial parameters."""
        import jax

        from zsad_jax.data import load_batches

        (batch,) = load_batches(
            self.dataset, self.backbone.preprocess, batch_size=len(self.dataset), num_workers=0
        )
        init_key, _ = jax.random.split(jax.random.key(0))
        params = self.method.init(init_key, self.backbone.params)
        shared.save_setup(self.options.folder, self.backbone, self.method, params)
        np.savez(self.options.folder / "images.npz", images=batch.images, masks=batch.masks)


class Curves:
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.losses.append(values["loss"])


class Theirs(shared.TorchSide):
    """Training with PyTorch."""

    def train(self, epochs: int) -> dict[str, Any]:
        size = self.options.batch_size
        losses = self.peer.train(self.images, self.masks, epochs=epochs, batch_size=size)
        return {"losses": losses, "seeds": [0], "encoded": epochs}


if __name__ == "__main__":
    sys.exit(main())
