"""Benchmark of MuSc on the features of one category, beside loops over its images in PyTorch.

    python scripts/benchmark_musc.py --images 200 --cores 1
    python scripts/benchmark_musc.py --images 200 --grid 37 --size 518 --queries 8 --layers 1 --degrees 3
    python scripts/benchmark_musc.py --images 1000 --grid 37 --size 518 --batch_size 1 --queries 1 --alone

Features are random and stored in a file, with the sizes of a ViT-S/14 at 252 pixels. The PyTorch side has the
steps of the published code: for each image, the distances of its patches to those of all images. Each side runs
in its own process, and the scores of both must agree. The first run of the library compiles.

With --queries, only the first images are scored, against all. `pairs` is the number of pairs of images that are
compared: the library uses a matrix of distances for both of its images, PyTorch makes it anew for each. Of all
images, the library compares half of the pairs of PyTorch; `cpu_seconds_for_all` is in proportion to the pairs.
Memory grows by `growth_gib` from before the first run; `distances_gib` is calculated: the distances of the
images that the library scores in one pass to all images.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import benchmark_sides as shared
import numpy as np

from zsad_jax.methods.musc import IMAGES_PER_PASS
from zsad_jax.utils import command_line
from zsad_jax.utils.errors import UserError

LAYERS = (6, 12, 18, 24)
SHARE = 0.3
TOLERANCE = 1e-4


def draw_patches(options: argparse.Namespace) -> None:
    """Stores patches [n, layers, h, w, d]: a pattern that all images share, and noise."""
    rng = np.random.default_rng(0)
    shape = options.layers, options.grid, options.grid, options.width
    pattern = rng.standard_normal(shape, np.float32)
    file = np.lib.format.open_memmap(
        options.patches, "w+", np.dtype(np.float32), (options.images, *shape)
    )
    for image in file:
        image[:] = pattern + rng.standard_normal(shape, np.float32)


def read_patches(options: argparse.Namespace, part: Any) -> np.ndarray:
    """Returns a part of the stored patches; pages of the file are not kept in memory."""
    return np.array(np.load(options.patches, mmap_mode="r")[part])


class Ours(shared.OnJax):
    """The method of the library."""

    def __init__(self, options: argparse.Namespace):
        from zsad_jax.backbones.load import describe_backbone
        from zsad_jax.methods import make_method

        super().__init__(options)
        backbone = describe_backbone("tips-s14-hr")
        size = dataclasses.replace(backbone.preprocess, image_size=options.size)
        layers = LAYERS[: options.layers]
        config = {"degrees": options.degrees, "share": SHARE, "neighbors": ()}
        config["feature_layers"] = layers
        backbone = dataclasses.replace(backbone, preprocess=size)
        self._method = make_method("musc", backbone, config)

    def _blocks(self) -> Iterator[Any]:
        from zsad_jax.backbones.base import VisionFeatures

        rows = self.options.batch_size
        for start in range(0, self.options.images, rows):
            positions = np.arange(start, start + rows)
            own = read_patches(self.options, np.minimum(positions, self.options.images - 1))
            tokens = np.zeros((rows, 1, 1), np.float32)
            yield VisionFeatures(tokens, own), positions < self.options.images

    def score(self) -> shared.Values:
        """Returns the scores of images and patches."""
        if self.options.queries == self.options.images:
            found = self._method.across({}, {}, None, self._blocks, 0)
            return found.image["patch"], found.patches[..., 0]
        from zsad_jax.methods import musc

        # A pass over all images scores so many; the method makes further passes until all are scored.
        musc.IMAGES_PER_PASS = self.options.queries
        count, found = self.options.queries // self.options.batch_size, []
        for layer, degree in itertools.product(range(self.options.layers), self.options.degrees):

            def blocks(layer: int = layer, degree: int = degree) -> Iterator[Any]:
                for x, valid in self._blocks():
                    yield musc.describe(x.patches[:, layer], degree), valid

            found.append(
                np.concatenate([*itertools.islice(musc.mutual_scores(blocks, SHARE), count)])
            )
        patches = np.mean(found, axis=0)
        maps = self._method.anomaly_map(patches[..., None], self.options.size)
        return np.asarray(maps.max(axis=(1, 2))), patches


class Theirs(shared.OnTorch):
    """Loops over images in PyTorch."""

    def __init__(self, options: argparse.Namespace):
        import torch

        super().__init__(options)
        self._torch = torch

    def score(self) -> shared.Values:
        """Returns the scores of images and patches."""
        functional, found = self._torch.nn.functional, []
        for number in range(self.options.layers):
            layer = self._torch.from_numpy(read_patches(self.options, (slice(None), number)))
            layer = layer.to(self.device).permute(0, 3, 1, 2).contiguous()
            normed = functional.layer_norm(layer, layer.shape[1:])
            for degree in self.options.degrees:
                windows = functional.avg_pool2d(normed, degree, 1, degree // 2)
                unit = functional.normalize(windows.flatten(2).transpose(1, 2), dim=-1)
                found.append(self._mutual_scores(unit))
        grid = self.options.grid
        patches = self._torch.stack(found).mean(0).reshape(-1, 1, grid, grid)
        sizes = {"size": self.options.size, "mode": "bilinear", "align_corners": True}
        maps = [functional.interpolate(one[None], **sizes) for one in patches]
        return np.array([float(one.max()) for one in maps]), patches[:, 0].cpu().numpy()

    def _mutual_scores(self, unit: Any) -> Any:
        count, length, width = unit.shape
        nearest = int(np.ceil(SHARE * (count - 1)))
        scores = []
        for number, image in enumerate(unit[: self.options.queries]):
            distances = self._torch.cdist(image, unit.reshape(-1, width))
            smallest = distances.reshape(length, count, length).min(-1).values
            others = self._torch.cat([smallest[:, :number], smallest[:, number + 1 :]], dim=1)
            scores.append(others.topk(nearest, largest=False).values.mean(1))
        return self._torch.stack(scores)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="number of images")
    parser.add_argument("--queries", type=int, help="images that are scored (default: all)")
    parser.add_argument("--layers", type=int, default=len(LAYERS), choices=range(1, 5))
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--alone", action="store_true", help="the library without PyTorch")
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
    if options.alone or find_spec("torch") is None:
        del sides["PyTorch"]
    options.queries = count = options.queries or options.images
    if count != options.images and (count > options.images or count % options.batch_size):
        raise UserError(
            f"--queries {count} is not a multiple of --batch_size {options.batch_size} up to --images"
            f" {options.images}. Change one."
        )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        options.patches = pathlib.Path(folder) / "patches.npy"
        draw_patches(options)
        made = {
            name: stack.enter_context(shared.Side(make, options.cores, options))
            for name, make in sides.items()
        }
        before = {name: side.time("device_bytes").memory for name, side in made.items()}
        turns = [{n: side.time("score") for n, side in made.items()} for _ in range(options.runs)]
    fastest = {name: min(turn[name].processor for turn in turns) for name in made}
    values = [turn.value for turn in turns[0].values()]
    difference, _ = shared.compare_values(values[0], values[-1])
    if not difference <= TOLERANCE:
        raise UserError(f"The scores of the sides differ by {difference:.1e}.")
    rows = [
        {
            "side": name,
            "seconds": min(turn[name].seconds for turn in turns),
            "cpu_seconds": fastest[name],
            "cpu_ratio": fastest[name] / fastest[[*made][-1]],
            "pairs": count_pairs(name, options, count),
            "cpu_seconds_for_all": fastest[name]
            * count_pairs(name, options, options.images)
            / count_pairs(name, options, count),
            "peak_gib": turns[-1][name].memory,
            "growth_gib": turns[-1][name].memory - before[name],
        }
        for name in made
    ]
    for row in rows:
        row["ratio_for_all"] = row["cpu_seconds_for_all"] / rows[-1]["cpu_seconds_for_all"]
    scored = min(count, IMAGES_PER_PASS)
    distances = 4 * scored * options.images * options.grid**2 / 2**30
    shared.report(options, rows, difference=difference, distances_gib=round(distances, 3))


def count_pairs(side: str, options: argparse.Namespace, queries: int) -> int:
    """Returns the number of pairs of images whose patches are compared, for each layer and degree."""
    if side == "PyTorch":
        return queries * options.images
    rows, total = options.batch_size, 0
    queries, images = (-(-count // rows) * rows for count in (queries, options.images))
    for start in range(0, queries, IMAGES_PER_PASS):
        count = min(IMAGES_PER_PASS, queries - start)
        # Of two blocks of one pass, the matrix is made once.
        total += count * images - count * (count - rows) // 2
    return total


if __name__ == "__main__":
    sys.exit(main())
