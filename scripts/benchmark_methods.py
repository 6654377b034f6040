"""Benchmark of the CLIP methods against the same computations in PyTorch, with a check that both agree.

    python scripts/make_random_weights.py clip-vit-l14-336 --out /some/where
    python scripts/benchmark_methods.py --weights PRINTED_FILE --images IMAGE_FOLDER

Reports two timings per method: from 8-bit images at the input size to scores and maps, including the vision
tower; and from the features of all images to scores and maps. Text features that do not depend on the image
are encoded beforehand. The learned parameters are random.

Each side runs in its own process, so that peak memory is measured separately. The sides alternate on the
same cores, so that other load on the machine affects both equally; on a busy machine, compare CPU time. The
PyTorch side is `benchmark_peers.py` (extra `parity`, and scipy).
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from benchmark_sides import Side, Turn

from zsad_jax.utils import command_line
from zsad_jax.utils.errors import UserError

METHODS = ("anomalyclip", "faprompt", "tps", "vip2clip")
SPEAKING = ("clip", "coop", "cocoop")  # need a tokenizer for the class name
TOLERANCE = 1e-3  # for scores and maps, relative to the range of the maps where it is below 1
ROUNDING = 1e-6  # float32 error of a cosine over the temperature
# Initial parameters are scaled by GAIN and perturbed with noise, so that maps have contrast and no
# probability saturates.
GAIN, NOISE = 10, 0.01
CATEGORY = "object"

Values = tuple[np.ndarray, np.ndarray]  # scores [b] and maps [b, S, S]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="safetensors file with OpenAI's names")
    parser.add_argument(
        "--tokenizer", help="BPE merges, for methods whose prompts contain the class name"
    )
    parser.add_argument("--images", type=pathlib.Path, required=True, help="folder of images")
    parser.add_argument("--count", type=int, default=8, help="number of images")
    parser.add_argument(
        "--image_size", type=int, default=518, help="side of the model input, in pixels"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS + SPEAKING, default=METHODS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--batch_size", type=int, default=1, help="images per call (zsad_jax side)")
    parser.add_argument("--turns", type=int, default=3, help="number of runs of the second timing")
    parser.add_argument("--cores", type=int, help="number of cores per side (default: all)")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Prints the timings of each part of each method."""
    if not os.path.exists(options.weights):
        raise UserError(
            f"The weights file {options.weights} does not exist. Create one with make_random_weights.py."
        )
    if options.count % options.batch_size:
        raise UserError(f"--batch_size {options.batch_size} must divide --count {options.count}.")
    options.images = pictures(options.images, options.count)
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    print(f"{options.weights} at {options.image_size}, {options.count} images,", end=" ")
    print(f"batch {options.batch_size}, {len(cores)} cores; seconds per image, medians:")
    for name in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            shared = pathlib.Path(folder)
            # The PyTorch side reads the setup that the zsad_jax side saves.
            ours, theirs = (Side(side, cores, options, name, shared) for side in SIDES)
            for part in options.parts:
                PARTS[part](options, name, ours, theirs)
            ours.close()
            theirs.close()


def compare_predictions(options: argparse.Namespace, name: str, ours: Side, theirs: Side) -> None:
    """Compares both sides from images to maps, one batch per run."""
    size = options.batch_size
    turns = [
        [side.time("predict", start, start + size) for side in (ours, theirs)]
        for start in range(0, options.count, size)
    ]
    report(f"{name}, images to maps", turns, size)
    print(f"    peak memory: {ours.peak_gib():.2f} GiB, PyTorch {theirs.peak_gib():.2f} GiB")


def compare_scorings(options: argparse.Namespace, name: str, ours: Side, theirs: Side) -> None:
    """Compares both sides from features to maps, all images per run."""
    for side in (ours, theirs):
        side.time("encode")
        side.time("score")  # compiles
    turns = [[side.time("score") for side in (ours, theirs)] for _ in range(options.turns)]
    report(f"{name}, features to maps", turns, options.count)


PARTS: dict[str, Callable[[argparse.Namespace, str, Side, Side], None]] = {
    "predict": compare_predictions,
    "score": compare_scorings,
}


def report(what: str, turns: Sequence[Sequence[Turn]], size: int) -> None:
    """Checks that both sides agree in every run, and prints the medians."""
    difference, span = compare_values([(ours.value, theirs.value) for ours, theirs in turns])
    if not difference <= TOLERANCE * min(span, 1) + ROUNDING:
        raise UserError(
            f"{what}: the sides differ by {difference:.1e}, which is too much for maps with range {span:.1e}."
        )
    seconds, processor = (
        np.array([[getattr(turn, field) / size for turn in pair] for pair in turns])
        for field in ("seconds", "processor")
    )
    for kind, times in (("time", seconds), ("processor", processor)):
        ours_s, theirs_s = np.median(times, axis=0)
        low, ratio, high = np.quantile(times[:, 0] / times[:, 1], [0, 0.5, 1])
        print(f"{what:30} {kind:9} zsad_jax {ours_s:7.3f}  PyTorch {theirs_s:7.3f}", end="  ")
        print(f"zsad_jax/PyTorch {ratio:.2f} ({low:.2f} to {high:.2f})", end="  ")
        print(f"PyTorch/zsad_jax {1 / ratio:.2f}")
    print(f"    largest difference {difference:.1e}, map range {span:.1e},", end=" ")
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)


def compare_values(pairs: Sequence[tuple[Values, Values]]) -> tuple[float, float]:
    """Returns the largest difference of scores and maps between two sides, and the range of the maps."""
    differences = [
        np.abs(mine - other).max() for pair in pairs for mine, other in zip(*pair, strict=True)
    ]
    return max(differences), float(np.ptp(np.concatenate([maps for _, (_, maps) in pairs])))


class Ours:
    """The library's detector; saves the other side's inputs in the folder `shared`."""

    def __init__(self, options: argparse.Namespace, name: str, shared: pathlib.Path):
        import jax

        import zsad_jax
        from zsad_jax.detector import make_detector
        from zsad_jax.methods import make_method

        backbone = zsad_jax.load_backbone(
            "clip",
            weights=options.weights,
            tokenizer=options.tokenizer,
            image_size=options.image_size,
        )
        method = make_method(name, backbone)
        params = draw(method.init(jax.random.key(0), backbone.params))
        self.detector = make_detector(
            backbone,
            method,
            params,
            prompts="random",
            categories=(CATEGORY,),
            batch_size=options.batch_size,
        )
        self.images = np.stack([self.detector.resize(path) for path in options.images])
        self.shared = shared
        self.save_setup()
        if "predict" in options.parts:
            self.predict(0, options.batch_size)  # compiles

    def save_setup(self) -> None:
        """Saves the images, token ids, settings and parameters for the other side."""
        from flax.traverse_util import flatten_dict

        method = self.detector.method
        ids, _ = self.detector.backbone.tokenize(texts_of(method.config))
        layers, vv_from, cls_norm, _ = method.features_key
        flat = flatten_dict(self.detector.params, sep="/")
        params = {f"params/{key}": x for key, x in flat.items()}
        setup = {"layers": layers, "vv_from": vv_from or 0, "cls_norm": cls_norm}
        setup["sigma"] = method.config.sigma
        np.savez(self.shared / "setup.npz", images=self.images, ids=ids, **setup, **params)

    def predict(self, start: int, end: int) -> Values:
        return tuple(self.detector.predict_resized(self.images[start:end]))

    def encode(self) -> None:
        """Encodes all images, and saves the features for the other side."""
        import jax

        method, backbone = self.detector.method, self.detector.backbone

        @jax.jit
        def encode(frozen: Any, learned: Any, image: Any) -> Any:
            return method.features(frozen, learned, backbone.preprocess.normalize(image))

        params = self.detector.params
        found = [
            jax.device_get(encode(backbone.params, params, image[None])) for image in self.images
        ]
        features = jax.tree.map(lambda *rows: np.concatenate(rows), *found)
        tokens, patches = features.global_tokens, features.patches
        np.savez(self.shared / "features.npz", tokens=tokens, patches=patches)

        size = self.images.shape[1]
        category = np.zeros(len(self.images), np.int32)

        @jax.jit
        def scored(frozen: Any, learned: Any, texts: Any, found: Any) -> Any:
            scores = method.score(frozen, learned, texts, found, category)
            maps = method.anomaly_map(scores.patches, size)
            return scores.image[self.detector.image_score], maps

        given = jax.device_put((backbone.params, params, self.detector.prototypes, features))
        self.scored = lambda: jax.device_get(scored(*given))

    def score(self) -> Values:
        return self.scored()


def draw(params: Any) -> Any:
    """Returns parameters that look trained: scaled, with noise added."""
    import jax

    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), max(len(leaves), 1))
    return tree.unflatten(
        GAIN * leaf + NOISE * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys[: len(leaves)], strict=True)
    )


def texts_of(config: Any) -> list[str]:
    """Returns the fixed texts of a method's prompts."""
    if hasattr(config, "learned_texts"):
        return list(config.learned_texts)
    if hasattr(config, "adjectives"):
        return list(config.adjectives)
    return [text.replace("{}", CATEGORY) for text in (config.normal_text, config.abnormal_text)]


def pictures(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Returns image files spread evenly over a folder, mask files included."""
    endings = {".png", ".jpg", ".jpeg", ".bmp"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if len(found) < count:
        raise UserError(
            f"{folder} has {len(found)} images, fewer than --count {count}. Reduce --count."
        )
    return found[:: len(found) // count][:count]


class Theirs:
    """The PyTorch side, from the inputs saved in `shared`."""

    def __init__(self, options: argparse.Namespace, name: str, shared: pathlib.Path):
        import torch
        from benchmark_peers import PEERS, Clip
        from safetensors.numpy import load_file

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        with np.load(shared / "setup.npz") as given:
            arrays = dict(given)
        self.images = arrays.pop("images")
        ids = torch.from_numpy(arrays.pop("ids"))
        setup = {
            "layers": arrays.pop("layers").tolist(),
            "vv_from": int(arrays.pop("vv_from")) or None,
            "cls_norm": bool(arrays.pop("cls_norm")),
            "sigma": float(arrays.pop("sigma")),
        }
        params = {key.removeprefix("params/"): torch.from_numpy(x) for key, x in arrays.items()}
        self.peer = PEERS[name](Clip(load_file(options.weights)), params, ids, setup)
        self.shared = shared
        if "predict" in options.parts:
            self.predict(0, 1)

    def predict(self, start: int, end: int) -> Values:
        return self.gather(self.peer.features(image) for image in self.images[start:end])

    def encode(self) -> None:
        """Reads the saved features, so that both sides use the same ones."""
        import torch

        with np.load(self.shared / "features.npz") as given:
            tokens, patches = (torch.from_numpy(given[name]) for name in ("tokens", "patches"))
        self.kept = list(zip(tokens[:, 0], patches.flatten(2, 3), strict=True))

    def score(self) -> Values:
        return self.gather(self.kept)

    def gather(self, features: Iterable[Any]) -> Values:
        """Returns scores and maps, computed one image at a time."""
        size = self.images.shape[1]
        scores, maps = zip(*(self.peer.predict(one, size) for one in features), strict=True)
        return np.array(scores), np.stack(maps)


SIDES = (Ours, Theirs)


if __name__ == "__main__":
    sys.exit(main())
