"""Benchmark of training: features encoded once against every epoch, seeds together, and PyTorch.

    python scripts/benchmark_training.py --method anomalyclip --size s14 --parts cache seeds
    python scripts/benchmark_training.py --method tipsomaly --size s14 --parts pytorch --epochs 5 --images 40

Parts:
  cache    all epochs with features in memory, against images that are encoded in every epoch. Both sides are
           compiled beforehand, and the first encodes the images within the measured time.
  seeds    several seeds together, against one after another, each in a process of its own. Features are on
           disk, and compilation is included, with an empty store of compiled programs at the start of both.
  pytorch  the library in a new process, first with nothing stored, then with features and compiled programs on
           disk, against PyTorch (`benchmark_peers.py`), which encodes every image in every epoch, as the
           published code does. The losses of each step must agree. Needs the extra `parity`.

Models have random weights, images are drawn, and each side runs in its own process; loading is not measured.
Ratios are to the last line of a part. On a busy machine, compare processor time.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from benchmark_sides import Side, Turn, compare_times, to_markdown
from PIL import Image

import zsad_jax
from zsad_jax.backbones import registry
from zsad_jax.backbones.base import Backbone
from zsad_jax.methods import METHODS, config_class
from zsad_jax.utils import command_line, compilations, files
from zsad_jax.utils.errors import UserError

SIZES = ("nano", "s14", "b14", "l14")
PEERS = {"tipsomaly": "TIPSomalyTrainer"}  # classes in `benchmark_peers`, which needs PyTorch
TOLERANCE = 1e-3  # of losses, relative
Turns = dict[str, list[Turn]]  # by side; their times are added up


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=list(METHODS), default="tipsomaly")
    parser.add_argument(
        "--options", type=json.loads, default={}, help="fields of the method's config, as JSON"
    )
    parser.add_argument(
        "--backbone", choices=("tips", "clip"), help="family; default: the method's"
    )
    parser.add_argument("--size", choices=SIZES, default="s14", help="of both towers")
    parser.add_argument(
        "--image_size", type=int, default=518, help="side of the model input, in pixels"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch_size", type=int, default=8, help="images per step")
    parser.add_argument("--images", type=int, default=40, help="number of images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds of the part 'seeds'")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all that are possible")
    parser.add_argument("--cores", type=int, help="number of cores per side (default: all)")
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures all parts, and prints and writes the results."""
    if options.backbone is None:
        options.backbone = config_class(options.method).recipe.backbone["name"].partition("-")[0]
    options.cores = sorted(os.sched_getaffinity(0))[: options.cores]
    has_peer = find_spec("torch") is not None and options.method in PEERS
    results = []
    for part in options.parts or [part for part in PARTS if has_peer or part != "pytorch"]:
        with tempfile.TemporaryDirectory() as folder:
            options.folder = pathlib.Path(folder)
            write_weights(options)
            # For the processes of both sides, as commands set it.
            os.environ["ZSAD_JAX_HOME"] = str(options.folder / "home")
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(options.folder / "home" / "xla")
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(compilations.SHORTEST_S)
            draw_dataset(options.folder / "images", options.images, options.image_size)
            times = {
                side: (sum(one.seconds for one in turns), sum(one.processor for one in turns))
                for side, turns in PARTS[part](options).items()
            }
            results += compare_times(times, part=part)
    setting = {k: v for k, v in vars(options).items() if k not in ("folder", "json", "parts")}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(to_markdown(results), end="")
    if options.json:
        files.write_json(options.json, {"setting": setting, "results": results})


def measure_cache(options: argparse.Namespace) -> Turns:
    turns = {}
    for what, cache in (("features in memory", "memory"), ("encoded in every epoch", "none")):
        side = Side(Ours, options.cores, options)
        side.time("train", cache, [0], 1)
        turns[what] = [side.time("train", cache, [0], options.epochs)]
        side.close()
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
    if options.method not in PEERS:
        raise UserError(
            f"There is no PyTorch side for training {options.method}. Choose one of {', '.join(PEERS)}, or"
            " other --parts."
        )
    measure_once(Ours, options, "export")
    shutil.rmtree(options.folder / "home", ignore_errors=True)
    train = "train", "disk", [0], options.epochs
    turns = {
        "zsad_jax, nothing stored": [measure_once(Ours, options, *train)],
        "zsad_jax, all stored": [measure_once(Ours, options, *train)],
        "PyTorch": [measure_once(Theirs, options, "train", options.epochs)],
    }
    ours, _, theirs = (np.array(one[0].value) for one in turns.values())
    difference = np.abs(ours / theirs - 1).max()
    if not difference <= TOLERANCE:
        raise UserError(f"The losses of both sides differ by {difference:.1e} of their values.")
    return turns


PARTS: dict[str, Callable[[argparse.Namespace], Turns]] = {
    "cache": measure_cache,
    "seeds": measure_seeds,
    "pytorch": measure_pytorch,
}


def measure_once(side_class: type, options: argparse.Namespace, *call: Any) -> Turn:
    """Times one call in a new process."""
    side = Side(side_class, options.cores, options)
    turn = side.time(*call)
    side.close()
    return turn


def draw_dataset(folder: pathlib.Path, count: int, size: int) -> None:
    """Writes smooth random images, every other one with a bright square, and a meta.json."""
    folder.mkdir()
    rng, entries = np.random.default_rng(0), []
    for number in range(count):
        coarse = rng.integers(0, 160, (8, 8, 3), np.uint8)
        image = np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        mask = np.zeros((size, size), np.uint8)
        if number % 2:
            y, x = rng.integers(0, size * 3 // 4, 2)
            mask[y : y + size // 4, x : x + size // 4] = 255
            image[mask > 0] += 80
        for name, pixels in (("image", image), ("mask", mask)):
            Image.fromarray(pixels).save(folder / f"{number}_{name}.png")
        fields = {
            "img_path": f"{number}_image.png",
            "mask_path": f"{number}_mask.png" * (number % 2),
        }
        entries.append(
            fields | {"cls_name": "object", "specie_name": "square", "anomaly": number % 2}
        )
    (folder / "meta.json").write_text(json.dumps({"train": {}, "test": {"object": entries}}))


class Ours:
    """Training with the library."""

    def __init__(self, options: argparse.Namespace):
        from zsad_jax.data.meta_json import read_meta_json
        from zsad_jax.methods import make_method
        from zsad_jax.utils import sharding

        self.options = options
        self.backbone = load_backbone(options)
        self.method = make_method(options.method, self.backbone, options.options)
        self.dataset = read_meta_json(options.folder / "images", name="images", split="test")
        self.mesh = sharding.make_mesh()

    def train(self, cache: str, seeds: list[int], epochs: int) -> list[float]:
        """Trains, and returns the mean loss of the seeds in each step."""
        from zsad_jax.backbones.feature_cache import Features, FeaturesConfig
        from zsad_jax.methods.base import encoder_of
        from zsad_jax.train import Member, OrbaxSaver, TrainingConfig, train

        key, encode = encoder_of(self.method)
        features = Features(
            self.dataset,
            self.backbone,
            {key: encode},
            FeaturesConfig(cache=cache),
            mesh=self.mesh,
            rows=self.options.batch_size,
            num_workers=0,
        )
        recipe = dict(self.method.config.recipe.training)
        recipe |= {"epochs": epochs, "batch_size": self.options.batch_size, "shuffle": False}
        members = [Member(seed, TrainingConfig(**recipe)) for seed in seeds]
        curves = [Curves() for _ in members]
        with tempfile.TemporaryDirectory() as folder:
            saver = OrbaxSaver(pathlib.Path(folder))
            train(
                self.method,
                self.backbone,
                features,
                members,
                mesh=self.mesh,
                saver=saver,
                curves=curves,
            )
            saver.close()
        return curves[0].losses

    def export(self) -> None:
        """Writes what the PyTorch side needs: images, ground truth, texts and initial parameters."""
        import jax

        from zsad_jax.data import load_batches
        from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES

        preprocess, count = self.backbone.preprocess, len(self.dataset)
        (batch,) = load_batches(self.dataset, preprocess, batch_size=count, num_workers=0)
        pair = PROMPT_FAMILIES[self.method.config.prompt_family].sentences("object")
        ids, paddings = self.backbone.tokenize([*pair[0], *pair[1]])
        init_key, _ = jax.random.split(jax.random.key(0))
        np.savez(
            self.options.folder / "setup.npz",
            images=batch.images,
            masks=batch.masks,
            ids=ids,
            paddings=paddings,
            states=np.repeat([0, 1], [len(texts) for texts in pair]),
            **self.method.init(init_key, self.backbone.params),
        )


class Curves:
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.losses.append(values["loss"])


class Theirs:
    """Training with PyTorch."""

    def __init__(self, options: argparse.Namespace):
        import benchmark_peers
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        with np.load(options.folder / "setup.npz") as setup:
            self.trainer = getattr(benchmark_peers, PEERS[options.method])(
                dict(setup), tower_sizes(options), options.folder, options.batch_size
            )

    def train(self, epochs: int) -> list[float]:
        return self.trainer.train(epochs)


def tower_sizes(options: argparse.Namespace) -> tuple[registry.Sizes, registry.Sizes]:
    """Returns the sizes of the vision and the text tower; a CLIP has the widths and depths of the TIPS."""
    release = registry.RELEASES[
        "tips-nano" if options.size == "nano" else f"tips-{options.size}-hr"
    ]
    vision = {**release.vision, "grid": options.image_size // release.vision["patch_size"]}
    if options.backbone == "tips":
        return vision, release.text
    unknown = "feed_forward", "num_global_tokens"
    vision = {key: size for key, size in vision.items() if key not in unknown}
    embed_dim = {"embed_dim": vision["width"]}
    return vision | embed_dim, {**release.text, "vocabulary": 49_408, "length": 77, **embed_dim}


def write_weights(options: argparse.Namespace) -> None:
    """Writes random weights in the PyTorch layouts."""
    from make_random_weights import (
        clip_shapes,
        pytorch_text_shapes,
        pytorch_vision_shapes,
        write_arrays,
    )

    vision, text = tower_sizes(options)
    if options.backbone == "clip":
        shapes = {"weights.safetensors": clip_shapes(vision, text)}
    else:
        shapes = {
            "vision.npz": pytorch_vision_shapes(vision, vision["grid"]),
            "text.npz": pytorch_text_shapes(text),
        }
    for number, (name, wanted) in enumerate(shapes.items()):
        write_arrays(options.folder / name, wanted, np.random.default_rng(number))


def load_backbone(options: argparse.Namespace) -> Backbone:
    """Loads the random weights, over TIPS with the tokenizer of the demo backbone."""
    sources = {"weights": options.folder / "weights.safetensors"}
    if options.backbone == "tips":
        sources = {name: options.folder / f"{name}.npz" for name in ("vision", "text")}
        sources["tokenizer"] = registry.ASSETS / "tips-nano" / "tokenizer.model"
    vision, text = tower_sizes(options)
    return zsad_jax.load_backbone(
        options.backbone,
        **sources,
        num_heads=vision["num_heads"],
        text_num_heads=text["num_heads"],
        image_size=options.image_size,
        dtype=options.dtype,
    )


if __name__ == "__main__":
    sys.exit(main())
