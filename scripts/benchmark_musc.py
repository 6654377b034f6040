"""Benchmark of MuSc on the features of one category, beside loops over its images in PyTorch.

    python scripts/benchmark_musc.py --images 200 --cores 1

Features are random, with the sizes of a ViT-S/14 at 252 pixels. The PyTorch side has the steps of the published
code: for each image, the distances of its patches to those of all images. Each side runs in its own process,
and the scores of both must agree. The first run of the library compiles.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
from importlib.util import find_spec
from typing import Any

import benchmark_inference as inference
import numpy as np

from zsad_jax.utils import command_line
from zsad_jax.utils.errors import UserError

LAYERS = (6, 12, 18, 24)
DEGREES = (1, 3, 5)
SHARE = 0.3
TOLERANCE = 1e-4


def draw_patches(options: argparse.Namespace) -> np.ndarray:
    """Returns patches [n, layers, h, w, d]: a pattern that all images share, and noise."""
    rng = np.random.default_rng(0)
    shape = len(LAYERS), options.grid, options.grid, options.width
    noise = rng.normal(size=(options.images, *shape)).astype(np.float32)
    return noise + rng.normal(size=shape).astype(np.float32)


class Ours:
    """The method of the library."""

    def __init__(self, options: argparse.Namespace):
        from zsad_jax.backbones.base import VisionFeatures
        from zsad_jax.backbones.load import describe_backbone
        from zsad_jax.methods import make_method

        backbone = describe_backbone("tips-s14-hr")
        size = dataclasses.replace(backbone.preprocess, image_size=options.size)
        config = {"degrees": DEGREES, "share": SHARE, "neighbors": ()}
        backbone = dataclasses.replace(backbone, preprocess=size)
        self._method = make_method("musc", backbone, config)
        patches, rows = draw_patches(options), options.batch_size
        tokens = np.zeros((rows, 1, 1), np.float32)
        self._blocks = []
        for start in range(0, options.images, rows):
            positions = np.arange(start, start + rows)
            own = patches[np.minimum(positions, options.images - 1)]
            self._blocks.append((VisionFeatures(tokens, own), positions < options.images))

    def device_bytes(self) -> int | None:
        import jax

        stats = jax.local_devices()[0].memory_stats()
        return stats and stats["peak_bytes_in_use"]

    def score(self) -> inference.Values:
        """Returns the scores of images and patches."""
        found = self._method.across({}, {}, None, lambda: self._blocks, 0)
        return found.image["patch"], found.patches[..., 0]


class Theirs:
    """Loops over images in PyTorch."""

    def __init__(self, options: argparse.Namespace):
        import torch

        torch.set_grad_enabled(False)
        torch.set_num_threads(len(options.cores))
        self._torch, self._size = torch, options.size
        patches = torch.from_numpy(draw_patches(options)).permute(1, 0, 4, 2, 3).contiguous()
        self._patches = patches.to("cuda" if torch.cuda.is_available() else "cpu")

    def device_bytes(self) -> int | None:
        cuda = self._torch.cuda
        return cuda.max_memory_allocated() if cuda.is_available() else None

    def score(self) -> inference.Values:
        """Returns the scores of images and patches."""
        functional, found = self._torch.nn.functional, []
        for layer in self._patches:
            normed = functional.layer_norm(layer, layer.shape[1:])
            for degree in DEGREES:
                windows = functional.avg_pool2d(normed, degree, 1, degree // 2)
                unit = functional.normalize(windows.flatten(2).transpose(1, 2), dim=-1)
                found.append(self._mutual_scores(unit))
        patches = self._torch.stack(found).mean(0).reshape(-1, 1, *self._patches.shape[-2:])
        sizes = {"size": self._size, "mode": "bilinear", "align_corners": True}
        maps = [functional.interpolate(one[None], **sizes) for one in patches]
        return np.array([float(one.max()) for one in maps]), patches[:, 0].cpu().numpy()

    def _mutual_scores(self, unit: Any) -> Any:
        count, length, width = unit.shape
        nearest = int(np.ceil(SHARE * (count - 1)))
        scores = []
        for number, image in enumerate(unit):
            distances = self._torch.cdist(image, unit.reshape(-1, width))
            smallest = distances.reshape(length, count, length).min(-1).values
            others = self._torch.cat([smallest[:, :number], smallest[:, number + 1 :]], dim=1)
            scores.append(others.topk(nearest, largest=False).values.mean(1))
        return self._torch.stack(scores)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="number of images")
    parser.add_argument("--grid", type=int, default=18, help="side of the grid of patches")
    parser.add_argument("--width", type=int, default=384, help="length of a feature")
    parser.add_argument("--size", type=int, default=252, help="side of the maps, in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="images per block (zsad_jax)")
    parser.add_argument("--runs", type=int, default=1, help="runs of each side; the fastest counts")
    parser.add_argument("--cores", type=int, help="number of cores per side (default: all)")
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures both sides, and prints and writes the results."""
    options.cores = sorted(os.sched_getaffinity(0))[: options.cores]
    sides = {"zsad_jax": Ours, "PyTorch": Theirs}
    if find_spec("torch") is None:
        del sides["PyTorch"]
    with contextlib.ExitStack() as stack:
        made = {
            name: stack.enter_context(inference.Side(make, options.cores, options))
            for name, make in sides.items()
        }
        turns = [{n: side.time("score") for n, side in made.items()} for _ in range(options.runs)]
    fastest = {name: min(turn[name].processor for turn in turns) for name in made}
    values = [turn.value for turn in turns[0].values()]
    difference, _ = inference.compare_values(values[0], values[-1])
    if not difference <= TOLERANCE:
        raise UserError(f"The scores of the sides differ by {difference:.1e}.")
    rows = [
        {
            "side": name,
            "seconds": min(turn[name].seconds for turn in turns),
            "cpu_seconds": fastest[name],
            "cpu_ratio": fastest[name] / fastest[[*made][-1]],
            "peak_gib": turns[-1][name].memory,
        }
        for name in made
    ]
    inference.report(options, rows, difference=difference)


if __name__ == "__main__":
    sys.exit(main())
